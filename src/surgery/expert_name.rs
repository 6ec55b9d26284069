//! Which names an expert may have.

use super::error::SurgeryError;
use crate::Result;

/// A name with a meaning of its own.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReservedName {
    pub(super) name: &'static str,
    /// What it names, to complete “is reserved for”.
    pub(super) meaning: &'static str,
}

/// Refuses a name that is empty or reserved, and one that another expert has.
pub(super) fn check_name(name: &str, taken: &[&str], reserved: &[ReservedName]) -> Result<()> {
    if name.is_empty() {
        return Err(SurgeryError::EmptyExpertName.into());
    }
    if let Some(reserved) = reserved.iter().find(|reserved| reserved.name == name) {
        let meaning = reserved.meaning;
        let name = name.to_owned();
        return Err(SurgeryError::ReservedExpertName { name, meaning }.into());
    }
    if taken.contains(&name) {
        return Err(SurgeryError::TakenExpertName {
            name: name.to_owned(),
            taken: taken.iter().map(|taken| (*taken).to_owned()).collect(),
        }
        .into());
    }
    Ok(())
}
