//! Writes GGUF files for tests: well-formed ones, and ones that lie.

use std::collections::BTreeMap;

/// A file in the making. Everything is written as it is told; nothing is checked.
#[derive(Clone)]
pub(crate) struct GgufWriter {
    pub(crate) magic: [u8; 4],
    pub(crate) version: u32,
    pub(crate) alignment: usize,
    /// Instead of the true counts.
    pub(crate) num_tensors: Option<u64>,
    pub(crate) num_keys: Option<u64>,
    pub(crate) keys: Vec<(String, u32, Vec<u8>)>,
    pub(crate) tensors: Vec<WrittenTensor>,
}

/// A tensor as the file will announce it.
#[derive(Clone)]
pub(crate) struct WrittenTensor {
    pub(crate) name: String,
    /// Innermost dimension first, as the file has it.
    pub(crate) dimensions: Vec<u64>,
    pub(crate) type_id: u32,
    pub(crate) data: Vec<u8>,
    /// Instead of the true offset.
    pub(crate) offset: Option<u64>,
}

impl Default for GgufWriter {
    fn default() -> Self {
        let (keys, tensors) = Default::default();
        Self { magic: *b"GGUF", version: 3, alignment: 32, num_tensors: None, num_keys: None, keys, tensors }
    }
}

/// A GGUF string.
pub(crate) fn string(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

/// A GGUF array: element type, count, elements.
pub(crate) fn array(element: u32, count: u64, elements: &[u8]) -> Vec<u8> {
    let mut bytes = element.to_le_bytes().to_vec();
    bytes.extend(count.to_le_bytes());
    bytes.extend(elements);
    bytes
}

impl GgufWriter {
    /// A key with its value's bytes.
    pub(crate) fn key(mut self, key: &str, type_id: u32, value: Vec<u8>) -> Self {
        self.keys.push((key.to_owned(), type_id, value));
        self
    }

    pub(crate) fn number(self, key: &str, value: u32) -> Self {
        self.key(key, 4, value.to_le_bytes().to_vec())
    }

    pub(crate) fn float(self, key: &str, value: f32) -> Self {
        self.key(key, 6, value.to_le_bytes().to_vec())
    }

    pub(crate) fn text(self, key: &str, value: &str) -> Self {
        self.key(key, 8, string(value))
    }

    pub(crate) fn texts(self, key: &str, values: &[&str]) -> Self {
        let elements: Vec<u8> = values.iter().flat_map(|value| string(value)).collect();
        self.key(key, 9, array(8, values.len() as u64, &elements))
    }

    /// Replaces a key's value, or removes it.
    pub(crate) fn change(mut self, key: &str, value: Option<(u32, Vec<u8>)>) -> Self {
        self.keys.retain(|(known, ..)| known != key);
        match value {
            Some((type_id, bytes)) => self.key(key, type_id, bytes),
            None => self,
        }
    }

    /// An f32 tensor of zeros; `shape` is row-major.
    pub(crate) fn zeros(mut self, name: &str, shape: &[u64]) -> Self {
        let data = vec![0; 4 * shape.iter().product::<u64>() as usize];
        let dimensions = shape.iter().rev().copied().collect();
        self.tensors.push(WrittenTensor { name: name.to_owned(), dimensions, type_id: 0, data, offset: None });
        self
    }

    /// Changes the tensor of that name.
    pub(crate) fn with_tensor(mut self, name: &str, change: impl FnOnce(&mut WrittenTensor)) -> Self {
        if let Some(tensor) = self.tensors.iter_mut().find(|tensor| tensor.name == name) {
            change(tensor);
        }
        self
    }

    /// The file.
    pub(crate) fn build(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.num_tensors.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.num_keys.unwrap_or(self.keys.len() as u64).to_le_bytes());
        for (key, type_id, value) in &self.keys {
            out.extend(string(key));
            out.extend(type_id.to_le_bytes());
            out.extend(value);
        }
        let mut offset = 0;
        for tensor in &self.tensors {
            out.extend(string(&tensor.name));
            out.extend((tensor.dimensions.len() as u32).to_le_bytes());
            tensor.dimensions.iter().for_each(|dimension| out.extend(dimension.to_le_bytes()));
            out.extend(tensor.type_id.to_le_bytes());
            out.extend(tensor.offset.unwrap_or(offset as u64).to_le_bytes());
            offset = (offset + tensor.data.len()).next_multiple_of(self.alignment);
        }
        for tensor in &self.tensors {
            out.resize(out.len().next_multiple_of(self.alignment), 0);
            out.extend(&tensor.data);
        }
        out
    }
}

/// The smallest model of `architecture` that opens: one layer, width 8, two heads of 4, one key/value head, no vocabulary.
pub(crate) fn smallest_model(architecture: &str) -> GgufWriter {
    let key = |rest: &str| format!("{architecture}.{rest}");
    let counts: BTreeMap<&str, u32> = [
        ("block_count", 1),
        ("context_length", 64),
        ("embedding_length", 8),
        ("feed_forward_length", 12),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
    ]
    .into();
    let file = GgufWriter::default().text("general.architecture", architecture);
    let file = counts.iter().fold(file, |file, (rest, &count)| file.number(&key(rest), count));
    file.float(&key("attention.layer_norm_rms_epsilon"), 1e-5)
        .zeros("token_embd.weight", &[5, 8])
        .zeros("output_norm.weight", &[8])
        .zeros("blk.0.attn_norm.weight", &[8])
        .zeros("blk.0.attn_q.weight", &[8, 8])
        .zeros("blk.0.attn_k.weight", &[4, 8])
        .zeros("blk.0.attn_v.weight", &[4, 8])
        .zeros("blk.0.attn_output.weight", &[8, 8])
        .zeros("blk.0.ffn_norm.weight", &[8])
        .zeros("blk.0.ffn_gate.weight", &[12, 8])
        .zeros("blk.0.ffn_up.weight", &[12, 8])
        .zeros("blk.0.ffn_down.weight", &[8, 12])
}
