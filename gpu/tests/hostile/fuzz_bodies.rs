//! The fuzz bodies, and what runs them on stable Rust: the corpus as it is, and mutated by seeds.
//!
//! A body takes any bytes and asserts what must hold whatever they are; a coverage-guided fuzzer can call the same functions.

use relevo_gpu::weights::{GgufHeader, StoredType, TensorEntry, Value, dequantize, parse_safetensors};

use super::{corpus, folder, open_gguf};

/// Mutated files for each seed file.
const MUTATIONS: u64 = 1000;
/// Elements that a body dequantises of a tensor.
const MAX_ELEMENTS: usize = 4096;

/// Parses bytes as GGUF; reads every value and the beginning of every tensor; describes the model.
fn fuzz_gguf(data: &[u8]) {
    if let Ok(header) = GgufHeader::parse(data) {
        let metadata = header.metadata(data);
        let num_values: usize = metadata.keys().map(|key| walk(&metadata.value(key).expect("a listed key"))).sum();
        assert!(num_values <= data.len(), "{num_values} values out of {} bytes", data.len());
        check_tensors(&header.tensors, data);
    } else {
        return;
    }
    if let Ok(files) = open_gguf(data) {
        for layer in 0..files.description().num_layers {
            let down = files.role(relevo_gpu::description::Role::Down(layer)).expect("a role of the model");
            assert!(down.is_some_and(|down| down.num_elements() > 0));
        }
    }
}

/// Parses bytes as safetensors.
fn fuzz_safetensors(data: &[u8]) {
    if let Ok(tensors) = parse_safetensors(data) {
        check_tensors(&tensors, data);
    }
}

/// Opens a sound folder with these bytes as its configuration.
fn fuzz_config(data: &[u8]) {
    let weights =
        corpus("safetensors").into_iter().find(|(name, _)| name.ends_with("llama_f32.safetensors")).unwrap().1;
    let folder = folder(&[("config.json", data), ("model.safetensors", &weights)]);
    if let Ok(files) = relevo_gpu::weights::ModelFiles::open(folder.path()) {
        let rope = &files.description().rope;
        let frequencies = rope.inverse_frequencies(None);
        assert_eq!(frequencies.len(), rope.rotary_dim / 2);
        assert!(frequencies.iter().all(|frequency| !frequency.is_nan()), "{rope:?} gives {frequencies:?}");
    }
}

/// Counts a value's leaves by reading them.
fn walk(value: &Value<'_>) -> usize {
    match value {
        Value::Array(array) => {
            assert_eq!(array.iter().count(), array.len());
            array.iter().map(|value| walk(&value)).sum()
        }
        _ => 1,
    }
}

fn check_tensors(tensors: &[TensorEntry], data: &[u8]) {
    let mut places: Vec<_> = tensors.iter().map(|tensor| (tensor.offset, tensor.offset + tensor.byte_len)).collect();
    places.sort_unstable();
    assert!(places.windows(2).all(|pair| pair[0].1 <= pair[1].0), "two tensors share bytes");
    for tensor in tensors {
        let bytes = &data[tensor.offset..][..tensor.byte_len];
        let num_elements = tensor.shape.iter().product::<usize>();
        let (elements, block_bytes) = tensor.ty.block();
        assert_eq!(num_elements / elements * block_bytes, tensor.byte_len);
        if let StoredType::Served(ty) = tensor.ty {
            let num_blocks = (num_elements.min(MAX_ELEMENTS)) / elements;
            let mut out = vec![0.0; num_blocks * elements];
            dequantize(ty, &bytes[..num_blocks * block_bytes], &mut out).expect("whole blocks");
        }
    }
}

/// Steele, Lea and Flood's SplitMix64: seeds that differ by one give unrelated streams.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, most: usize) -> usize {
        (self.next() % most.max(1) as u64) as usize
    }
}

/// Numbers that parsers trip over.
const NUMBERS: [u64; 12] = [0, 1, 2, 31, 255, 1 << 16, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 62, 1 << 63, u64::MAX];

/// Changes one to four things. Most of it in the first part of the file, where the headers are.
fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(3) {
        let reach = if random.below(4) == 0 { bytes.len() } else { bytes.len().min(2048) };
        let at = random.below(reach);
        match random.below(7) {
            0 => bytes.truncate(at),
            1 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
            }
            2 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = random.next() as u8;
                }
            }
            kind @ (3 | 4) => {
                let number = NUMBERS[random.below(NUMBERS.len())].to_le_bytes();
                let width = if kind == 3 { 4 } else { 8 };
                if let Some(slot) = bytes.get_mut(at..at + width) {
                    slot.copy_from_slice(&number[..width]);
                }
            }
            5 => {
                let end = (at + random.below(64)).min(bytes.len());
                bytes.drain(at.min(end)..end);
            }
            _ => {
                let end = (at + random.below(64)).min(bytes.len());
                let copy = bytes[at.min(end)..end].to_vec();
                bytes.splice(at.min(end)..at.min(end), copy);
            }
        }
    }
}

fn run(kind: &str, mutations: u64, body: fn(&[u8])) {
    for (name, seed_bytes) in corpus(kind) {
        body(&seed_bytes);
        for seed in 0..mutations {
            let mut bytes = seed_bytes.clone();
            mutate(&mut bytes, &mut Random(seed));
            let outcome = std::panic::catch_unwind(|| body(&bytes));
            assert!(outcome.is_ok(), "{name} mutated by seed {seed} broke it");
        }
    }
}

#[test]
fn mutated_gguf_files_are_refused_or_sound() {
    run("gguf", MUTATIONS, fuzz_gguf);
}

#[test]
fn mutated_safetensors_files_are_refused_or_sound() {
    run("safetensors", MUTATIONS, fuzz_safetensors);
}

#[test]
fn mutated_configurations_are_refused_or_sound() {
    run("config", MUTATIONS / 5, fuzz_config);
}
