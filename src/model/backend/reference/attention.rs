//! Attention, ordinary or of experts, composed of steps.

use candle_core::{D, Result, Tensor};

use super::rotate;
use super::router::route;
use super::steps::Steps;
use crate::model::cache::LayerCache;
use crate::model::modules::{Attention, Heads, Linear, Matrix, Norm};
use crate::model::pass::Pass;
use crate::model::router::Routing;

/// The output for `h` `[batch, seq, hidden]`, and how its tokens were routed.
pub(super) fn forward<S: Steps>(
    steps: &S,
    attention: &Attention,
    h: &Tensor,
    pass: &Pass,
    cache: Option<&mut LayerCache>,
) -> Result<(Tensor, Option<Routing>)> {
    let (batch, seq, _) = h.dims3()?;
    let (queries, keys, values) = project(steps, attention, h, pass)?;
    let (keys, values) = match cache {
        Some(cache) => cache.append(&keys, &values, pass.attention_mask.offset)?,
        None => (keys, values),
    };
    let out = steps.attend(attention, &queries, &keys, &values, pass)?;
    let out = out.reshape((batch, seq, attention.heads.len(), ()))?;

    let Some(router) = &attention.router else {
        let o = &attention.heads[0].o;
        return Ok((steps.linear(o, &out.squeeze(2)?)?, None));
    };
    let overrides = &pass.overrides;
    let routing = route(
        steps,
        router,
        h,
        overrides.attention_top_k,
        &overrides.dropped,
    )?;
    let gates = routing.gates.to_dtype(h.dtype())?.unsqueeze(3)?;
    let gated = out.broadcast_mul(&gates)?;
    if attention.has_adapters() {
        return Ok((
            adapted_sum(steps, attention, &gates, &gated)?,
            Some(routing),
        ));
    }
    let terms: Vec<(&Matrix, Tensor)> = attention
        .heads
        .iter()
        .enumerate()
        .map(|(number, heads)| Ok((&heads.o.weight, of_expert(&gated, number)?)))
        .collect::<Result<_>>()?;
    let mut sum = steps.sum_of_matmuls(&terms)?;
    for (number, Heads { o, .. }) in attention.heads.iter().enumerate() {
        if let Some(bias) = &o.bias {
            sum = (sum + of_expert(&gates, number)?.broadcast_mul(bias)?)?;
        }
    }
    Ok((sum, Some(routing)))
}

/// The part of expert `number` in `x` `[batch, seq, experts, ..]`.
fn of_expert(x: &Tensor, number: usize) -> Result<Tensor> {
    x.narrow(2, number, 1)?.squeeze(2)
}

/// The sum of the experts' outputs through their adapters. A gate commutes with an adapter, which has no bias.
fn adapted_sum<S: Steps>(
    steps: &S,
    attention: &Attention,
    gates: &Tensor,
    gated: &Tensor,
) -> Result<Tensor> {
    let mut adapted = Vec::new();
    for (number, Heads { o, adapter, .. }) in attention.heads.iter().enumerate() {
        let Some(adapter) = adapter else { continue };
        let mut out = steps.matmul(&o.weight, &of_expert(gated, number)?)?;
        if let Some(bias) = &o.bias {
            out = (out + of_expert(gates, number)?.broadcast_mul(bias)?)?;
        }
        adapted.push((adapter, out));
    }
    steps.sum_of_matmuls(&adapted)
}

/// Queries `[batch, seq, experts, heads, head_dim]`, rotated where the layer rotates, and scaled by their position where the model
/// does so; keys rotated likewise, and values,
/// `[batch · sets · kv heads, seq, head_dim]`.
fn project<S: Steps>(
    steps: &S,
    attention: &Attention,
    h: &Tensor,
    pass: &Pass,
) -> Result<(Tensor, Tensor, Tensor)> {
    let (batch, seq, _) = h.dims3()?;
    let Attention {
        heads, key_values, ..
    } = attention;
    let queries = heads.iter().map(|heads| &heads.q);
    let keys = key_values.iter().map(|key_value| &key_value.k);
    let values = key_values.iter().map(|key_value| &key_value.v);
    let linears: Vec<&Linear> = queries.chain(keys).chain(values).collect();
    let mut projected = steps.project(&linears, h)?.into_iter();

    let normed = |x: Tensor, norm: &Option<Norm>| -> Result<Tensor> {
        let x = match norm {
            Some(norm) => {
                // The norm is of one head, or of all of them together.
                let size = norm.weight.dim(D::Minus1)?;
                steps.norm(norm, &x.reshape((batch, seq, (), size))?)?
            }
            None => x,
        };
        x.reshape((batch, seq, (), attention.head_dim))
    };
    let rotated = |x: Tensor, norm: &Option<Norm>| -> Result<Tensor> {
        let (before, after) = if attention.norm_after_rotation {
            (&None, norm)
        } else {
            (norm, &None)
        };
        let x = clipped(attention, normed(x, before)?)?;
        let x = match pass.rotations.of(attention.rotation) {
            Some(rotation) => rotate::apply(&x, rotation, steps.mode())?,
            None => x,
        };
        normed(x, after)
    };
    let queries: Vec<Tensor> = projected
        .by_ref()
        .take(heads.len())
        .zip(heads)
        .map(|(x, heads)| rotated(x, &heads.q_norm))
        .collect::<Result<_>>()?;
    let keys: Vec<Tensor> = projected
        .by_ref()
        .take(key_values.len())
        .zip(key_values)
        .map(|(x, key_value)| rotated(x, &key_value.k_norm))
        .collect::<Result<_>>()?;
    let values: Vec<Tensor> = projected
        .map(|v| {
            clipped(
                attention,
                v.reshape((batch, seq, attention.kv_heads, attention.head_dim))?,
            )
        })
        .collect::<Result<_>>()?;

    let rows = batch * key_values.len() * attention.kv_heads;
    let fold = |parts: Vec<Tensor>| -> Result<Tensor> {
        let all = if parts.len() == 1 {
            parts[0].clone()
        } else {
            Tensor::cat(&parts, 2)?
        };
        all.transpose(1, 2)?
            .contiguous()?
            .reshape((rows, seq, attention.head_dim))
    };
    let queries = Tensor::stack(&queries, 2)?;
    let queries = match &pass.query_scales {
        Some(scales) => queries.broadcast_mul(scales)?,
        None => queries,
    };
    Ok((queries, fold(keys)?, fold(values)?))
}

fn clipped(attention: &Attention, x: Tensor) -> Result<Tensor> {
    match attention.clip {
        Some(most) => x.clamp(-most, most),
        None => Ok(x),
    }
}
