//! Two codecs for cacheg in a crate of their own: the transform `acme.pair` and the entropy coder
//! `acme.gamma`. Programs that link this crate and name it (`use acme_codec as _;`) find both in
//! [`Registry::with_linked`](cacheg_core::Registry::with_linked).

mod bits;
mod gamma;
mod pair;

pub use gamma::GAMMA;
pub use pair::PAIR;
