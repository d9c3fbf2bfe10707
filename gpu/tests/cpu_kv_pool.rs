//! The KV pool as those see it who move blocks: bytes in, the same bytes out, without a copy, from any thread.

use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use relevo_gpu::cpu::KvPool;
use relevo_gpu::model::KvMemory;
use relevo_wire::{BlockIndex, ElementType, KvLayout, LayerIndex};

/// A KV pool in memory of either kind.
type NewPool = fn(KvLayout, usize) -> Result<KvPool, relevo_gpu::compute::ComputeError>;

const KINDS: [NewPool; 2] = [KvPool::new, KvPool::shareable];

/// 3 × (10 + 6) × 16 halves: no multiple of a cache line's worth of heads.
const LAYOUT: KvLayout =
    KvLayout { num_layers: 3, num_kv_heads: 1, key_dim: 5, value_dim: 3, element: ElementType::F16 };

fn pattern(layer: u32, block: u32) -> Vec<u8> {
    (0..LAYOUT.layer_block_bytes()).map(|i| (i * 7 + layer as usize * 31 + block as usize * 131) as u8).collect()
}

fn cells(num_blocks: u32) -> impl Iterator<Item = (u32, u32)> {
    (0..LAYOUT.num_layers).flat_map(move |layer| (0..num_blocks).map(move |block| (layer, block)))
}

#[test]
fn every_layer_of_every_block_keeps_its_own_bytes() {
    for new_pool in KINDS {
        let pool = new_pool(LAYOUT, 5).unwrap();
        assert_eq!((pool.num_blocks(), pool.layout()), (5, LAYOUT));
        for (layer, block) in cells(5) {
            assert!(pool.read(LayerIndex(layer), BlockIndex(block)).iter().all(|&byte| byte == 0), "zeros at first");
            pool.write(LayerIndex(layer), BlockIndex(block), &pattern(layer, block)).unwrap();
        }
        for (layer, block) in cells(5) {
            assert_eq!(
                pool.read(LayerIndex(layer), BlockIndex(block)),
                pattern(layer, block),
                "layer {layer}, block {block}"
            );
        }
    }
}

#[test]
fn a_block_is_read_where_it_lies_and_outlives_the_pool() {
    for new_pool in KINDS {
        let pool = new_pool(LAYOUT, 2).unwrap();
        pool.write(LayerIndex(2), BlockIndex(1), &pattern(2, 1)).unwrap();
        let (one, other) = (pool.read(LayerIndex(2), BlockIndex(1)), pool.read(LayerIndex(2), BlockIndex(1)));
        assert_eq!(one.as_ptr(), other.as_ptr(), "no copy");
        drop(pool);
        assert_eq!(one, pattern(2, 1));
    }
}

#[test]
fn leased_blocks_are_written_by_one_thread_while_another_reads_final_ones() {
    for new_pool in KINDS {
        let pool = Arc::new(new_pool(LAYOUT, 64).unwrap());
        let num_final = 32;
        for (layer, block) in cells(num_final) {
            pool.write(LayerIndex(layer), BlockIndex(block), &pattern(layer, block)).unwrap();
        }
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for (layer, block) in cells(32) {
                    pool.write(LayerIndex(layer), BlockIndex(num_final + block), &pattern(layer, block)).unwrap();
                }
            });
            for (layer, block) in cells(num_final) {
                assert_eq!(pool.read(LayerIndex(layer), BlockIndex(block)), pattern(layer, block));
            }
        });
        for (layer, block) in cells(32) {
            assert_eq!(pool.read(LayerIndex(layer), BlockIndex(num_final + block)), pattern(layer, block));
        }
    }
}

#[test]
fn a_block_that_comes_in_pieces_is_the_one_that_was_cut() {
    for new_pool in KINDS {
        let pool = new_pool(LAYOUT, 3).unwrap();
        let (layer, block) = (LayerIndex(1), BlockIndex(1));
        let whole = pattern(1, 1);
        for piece in [200..256, 0..1, 1..77, 77..200] {
            pool.write_at(layer, block, piece.start, &whole[piece]).unwrap();
        }
        pool.write_at(layer, block, 256, &[]).unwrap();
        assert_eq!(pool.read(layer, block), whole);
        for (offset, num_bytes) in [(0, 257), (256, 1), (255, 2), (usize::MAX, 2)] {
            let error = pool.write_at(layer, block, offset, &vec![9; num_bytes]).unwrap_err().to_string();
            assert_eq!(
                error,
                format!("the step's plan is inconsistent: {num_bytes} bytes at {offset} of a KV block of 256")
            );
        }
        for (layer, block) in cells(3).filter(|cell| *cell != (1, 1)) {
            assert!(pool.read(LayerIndex(layer), BlockIndex(block)).iter().all(|&byte| byte == 0), "{layer} {block}");
        }
    }
}

#[test]
fn wrong_lengths_and_places_are_refused_with_figures() {
    let pool = KvPool::new(LAYOUT, 2).unwrap();
    let write =
        |layer, block, bytes: &[u8]| pool.write(LayerIndex(layer), BlockIndex(block), bytes).unwrap_err().to_string();
    assert!(write(0, 0, &[0; 9]).contains("9 bytes for a KV block of 256"));
    assert!(write(3, 0, &[0; 256]).contains("layer 3, block 0 of a pool of 3 layers, 2 blocks"));
    assert!(write(0, 2, &[0; 256]).contains("layer 0, block 2 of a pool"));
}

#[test]
fn pools_that_cannot_be_are_errors() {
    let bf16 = KvLayout { element: ElementType::Bf16, ..LAYOUT };
    assert!(KvPool::new(bf16, 1).is_err());
    let error = KvPool::new(LAYOUT, usize::MAX / 4096).err().unwrap().to_string();
    assert!(error.contains("the KV pool"), "{error}");
    assert_eq!(KvPool::new(LAYOUT, 0).unwrap().num_blocks(), 0);
}

#[cfg(target_os = "linux")]
#[test]
fn a_pools_pages_are_there_before_they_are_touched() {
    let resident_kib = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        kib.unwrap().parse::<usize>().unwrap()
    };
    let layout = KvLayout { num_layers: 4, num_kv_heads: 8, key_dim: 64, value_dim: 64, element: ElementType::F16 };
    let (mut pools, mut wanted) = (Vec::new(), resident_kib());
    for new_pool in KINDS {
        let pool = new_pool(layout, 2_048).unwrap();
        wanted += pool.num_blocks() * layout.block_bytes() / 1024 * 9 / 10;
        pools.push(pool);
        let (_nobody_sends, pause) = sync_channel::<()>(1);
        let is_there = (0..30_000).any(|_| {
            let _ = pause.recv_timeout(Duration::from_millis(1));
            resident_kib() >= wanted
        });
        assert!(is_there, "{} of {wanted} KiB are there after half a minute", resident_kib());
    }
}

#[cfg(target_os = "linux")]
#[test]
fn who_is_given_a_pools_file_reads_its_blocks_where_it_says_and_cannot_change_them() {
    use std::os::unix::fs::FileExt;

    assert!(KvPool::new(LAYOUT, 4).unwrap().shared_region().is_none());
    let pool = KvPool::shareable(LAYOUT, 4).unwrap();
    let region = pool.shared_region().unwrap();
    let file = std::fs::File::from(region.file().try_clone_to_owned().unwrap());
    for (layer, block) in cells(4) {
        pool.write(LayerIndex(layer), BlockIndex(block), &pattern(layer, block)).unwrap();
        let bytes = pool.read(LayerIndex(layer), BlockIndex(block));
        let offset = region.offset_of(&bytes).unwrap() as u64;
        let mut there = vec![0; bytes.len()];
        file.read_exact_at(&mut there, offset).unwrap();
        assert_eq!(there, pattern(layer, block));
        assert!(file.write_at(&[1], offset).is_err());
    }
    let byte_len = file.metadata().unwrap().len();
    assert!(file.set_len(byte_len - 1).is_err() && file.set_len(byte_len + 1).is_err());
    assert_eq!(region.offset_of(&[0; 16]), None, "other memory");
    let kept = pool.read(LayerIndex(0), BlockIndex(0));
    drop(pool);
    assert!(region.is_alive(), "bytes of it are still read");
    drop(kept);
    assert!(!region.is_alive());
}
