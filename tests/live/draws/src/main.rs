//! The token ids that candle-transformers draws at temperature 0.7 with seed 11 from 200 rows of 300 logits.

use candle_core::{Device, Result, Tensor};
use candle_transformers::generation::{LogitsProcessor, Sampling};

fn main() -> Result<()> {
    let mut sampler = LogitsProcessor::from_sampling(11, Sampling::All { temperature: 0.7 });
    let mut draws = Vec::new();
    for round in 0..200 {
        let logits: Vec<f32> = (0..300)
            .map(|id| ((id * 37 + round * 11) % 101) as f32 / 25.0)
            .collect();
        draws.push(sampler.sample(&Tensor::new(logits, &Device::Cpu)?)?);
    }
    println!("{draws:?}");
    Ok(())
}
