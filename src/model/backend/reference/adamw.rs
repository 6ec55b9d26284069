//! AdamW in candle's operations, on any device.

use candle_core::{DType, Result, Tensor, Var};

use crate::model::backend::gradients::sum_of_squares;
use crate::model::backend::optimiser::{
    AdamW, HostValues, MeasuredUpdate, OptimiserState, StatePart, Update, UpdateSums,
};

/// The state of a parameter on its device.
#[derive(Debug)]
pub(in crate::model::backend) struct DeviceState {
    var: Var,
    /// Absent where the variable itself is float32.
    master: Option<Tensor>,
    first: Tensor,
    second: Tensor,
}

impl DeviceState {
    /// The state before the first update; `master` holds the float32 weights of a variable of another dtype.
    pub(in crate::model::backend) fn new(var: &Var, master: Option<Vec<f32>>) -> Result<Self> {
        let zeros = || Tensor::zeros(var.shape(), DType::F32, var.device());
        Ok(Self {
            var: var.clone(),
            master: master.map(|values| upload(values, var)).transpose()?,
            first: zeros()?,
            second: zeros()?,
        })
    }
}

fn upload(values: Vec<f32>, var: &Var) -> Result<Tensor> {
    Tensor::from_vec(values, var.shape(), var.device())
}

impl OptimiserState for DeviceState {
    fn download(&self, part: StatePart) -> Result<HostValues<'_>> {
        let tensor = match part {
            StatePart::First => &self.first,
            StatePart::Second => &self.second,
            StatePart::Master => self.master.as_ref().unwrap_or(self.var.as_tensor()),
        };
        Ok(HostValues::Copy(tensor.flatten_all()?.to_vec1::<f32>()?))
    }

    fn upload(&mut self, part: StatePart, values: Vec<f32>) -> Result<()> {
        let tensor = upload(values, &self.var)?;
        match part {
            StatePart::First => self.first = tensor,
            StatePart::Second => self.second = tensor,
            StatePart::Master => {
                self.var.set(&tensor.to_dtype(self.var.dtype())?)?;
                if self.master.is_some() {
                    self.master = Some(tensor);
                }
            }
        }
        Ok(())
    }

    fn update(
        &mut self,
        adamw: &AdamW,
        update: &Update,
        gradient: Option<&Tensor>,
    ) -> Result<MeasuredUpdate> {
        let c = adamw.constants(update);
        let gradient = match gradient {
            Some(gradient) => (gradient * f64::from(c.scale))?,
            None => self.first.zeros_like()?,
        };
        self.first = ((&self.first * f64::from(c.beta1))?
            + (&gradient * f64::from(1.0 - c.beta1))?)?
        .detach();
        self.second = ((&self.second * f64::from(c.beta2))?
            + (gradient.sqr()? * f64::from(1.0 - c.beta2))?)?
        .detach();

        let root = ((self.second.sqrt()? * f64::from(c.root))? + f64::from(c.epsilon))?;
        let old = match &self.master {
            Some(master) => master.clone(),
            None => self.var.as_detached_tensor(),
        };
        let new =
            ((&old * f64::from(c.keep))? - (self.first.div(&root)? * f64::from(c.rate))?)?.detach();
        let sums = if update.measured {
            MeasuredUpdate::Waiting([sum_of_squares(&old)?, sum_of_squares(&(&new - &old)?)?])
        } else {
            MeasuredUpdate::Known(UpdateSums::default())
        };

        self.var.set(&new.to_dtype(self.var.dtype())?)?;
        if self.master.is_some() {
            self.master = Some(new);
        }
        Ok(sums)
    }

    fn shift(&mut self, by: &[f32]) -> Result<()> {
        let by = Tensor::from_slice(by, self.var.shape(), self.var.device())?;
        let old = self.master.as_ref().unwrap_or(self.var.as_tensor());
        let new = (old + by)?.detach();
        self.var.set(&new.to_dtype(self.var.dtype())?)?;
        if self.master.is_some() {
            self.master = Some(new);
        }
        Ok(())
    }
}
