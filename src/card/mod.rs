//! Model cards: the `README.md` of every checkpoint that a command writes, and what `push` adds to it.
//!
//! A new model gets a new card. A copy of a model, in the same or another form, keeps the text of that model's card.

mod ancestry;
mod carried;
mod engines;
mod error;
mod evaluation;
mod experts;
mod front_matter;
mod licence;
mod licence_text;
mod model_card;
mod neutral;
mod publication;
mod scores;
mod source;
mod training;
mod usage;

pub use ancestry::method_tags;
pub use carried::CopyOf;
pub use error::CardError;
pub use evaluation::{check_card, with_evaluation};
pub use licence::Licences;
pub use model_card::{CardModel, ModelCard, PromptsOfExpert, Relation};
pub use neutral::has_neutral_shared_expert;
pub use publication::Publication;
pub use scores::{ACCURACY, BITS_PER_BYTE, DataScore, PERPLEXITY};
pub use source::SourceFacts;
pub use training::{LastLosses, TrainedOn, TrainingSummary};
