//! The forward pass against other implementations' numbers, and against itself.
//!
//! Tests on the real model run where `cacheg-bench model get smollm2` has been (or `CACHEG_MODEL` names the file), and
//! say so where not; those on real KV caches need the folder `CACHEG_KV` (default: `../shared/data/kv` beside the
//! repository) as well.

mod real;
