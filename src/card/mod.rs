//! Model cards: the `README.md` of every checkpoint that a command writes, and what `push` adds to it.
//!
//! A new model gets a new card. A copy of a model, in the same or another form, keeps the text of that model's card.

mod error;
mod experts;
mod front_matter;
mod licence;
mod licence_text;
mod model_card;
mod publication;
mod scores;
mod source;
mod usage;

pub use error::CardError;
pub use licence::Licences;
pub use model_card::{CardModel, LastLosses, ModelCard, Relation, TrainedOn, TrainingSummary};
pub use publication::Publication;
pub use scores::{ACCURACY, BITS_PER_BYTE, DataScore, PERPLEXITY};
pub use source::SourceFacts;
