//! A run that is asked for.

use std::path::PathBuf;

use candle_core::Device;

use super::settings::{Operation, Settings};

/// A run that is asked for.
pub struct Request {
    /// Folder of the checkpoint that training begins with.
    pub checkpoint: PathBuf,
    /// The weight file that the folder was converted from for this run, which the output then names as its source.
    pub origin: Option<PathBuf>,
    /// Name, token folder and weight of each domain.
    pub data: Vec<(String, PathBuf, f64)>,
    /// Folder to make.
    pub out: PathBuf,
    /// What the weights follow from; [`Settings::data`] is filled in here.
    pub settings: Settings,
    /// How the run goes about it.
    pub operation: Operation,
    /// Where it computes.
    pub device: Device,
}
