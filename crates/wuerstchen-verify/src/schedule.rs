//! The resize, the noise schedule and single sampler steps.

use burn::prelude::*;
use wuerstchen::blocks::{channels_first, channels_last};
use wuerstchen::resize::resize_bicubic;
use wuerstchen::sampler::add_noise;
use wuerstchen::schedule::{default_stage_c_timesteps, uniform_timesteps};
use wuerstchen::{ModelFiles, Sampler, Schedule};

use crate::compare::Recorder;
use crate::report::VerifyError;
use crate::stages::{DIFFUSION_BOUND, EXACT_BOUND};

pub(crate) fn interpolate(
    recorder: &mut Recorder,
    _: &ModelFiles,
    device: &Device,
) -> Result<(), VerifyError> {
    for pair in recorder.stems(":in") {
        let x = recorder.tensor(&format!("{pair}:in"), device)?;
        let name = format!("{pair}:out");
        let &[.., height, width] = recorder.shape(&name)? else {
            return Err(recorder.error(format!("expected pictures in {name:?}")));
        };
        let y = resize_bicubic(channels_last(x), [height, width]);
        recorder.check(&name, channels_first(y), EXACT_BOUND);
    }
    Ok(())
}

/// These goldens are of the default schedule, whatever the model's is.
pub(crate) fn scheduler(
    recorder: &mut Recorder,
    _: &ModelFiles,
    device: &Device,
) -> Result<(), VerifyError> {
    let schedule = Schedule::default();
    let times = recorder.values("t")?;
    for name in recorder.names() {
        if let Some(scaler) = name.strip_prefix("alpha_cumprod.scaler") {
            let scaler = scaler.parse().map_err(|_| recorder.error(format!("odd {name:?}")))?;
            let schedule = Schedule { scaler, ..schedule };
            let alphas: Vec<f32> = times.iter().map(|&t| schedule.alpha_cumprod(t)).collect();
            recorder.check_values(&name, &[&alphas], EXACT_BOUND);
        }
        if let Some(case) = name.strip_prefix("timesteps.") {
            let times = case.strip_prefix('n').and_then(|steps| steps.parse().ok());
            match (case, times) {
                ("stagec", _) => {
                    recorder.check_values(&name, &[&default_stage_c_timesteps()], EXACT_BOUND);
                }
                (_, Some(steps)) => {
                    recorder.check_values(&name, &[&uniform_timesteps(steps)], EXACT_BOUND);
                }
                (_, None) => {} // an arbitrary list, which only its steps use
            }
            steps(recorder, &schedule, case, device)?;
        }
    }
    let stage_c = "default_stage_c_timesteps";
    if recorder.has(stage_c) {
        recorder.check_values(stage_c, &[&default_stage_c_timesteps()], EXACT_BOUND);
    }
    if recorder.has("add_noise.t") {
        let times = recorder.values("add_noise.t")?;
        let x = recorder.tensor("add_noise.x0", device)?;
        let noise = recorder.tensor("add_noise.noise", device)?;
        recorder.check("add_noise.y", add_noise(&schedule, x, noise, &times), DIFFUSION_BOUND);
        let weights: Vec<f32> = times.iter().map(|&t| schedule.p2_weight(t, 1.0)).collect();
        if recorder.has("p2_weight") {
            recorder.check_values("p2_weight", &[&weights], DIFFUSION_BOUND);
        }
    }
    Ok(())
}

/// Every step of a list of times by itself, each from the golden state before it.
fn steps(
    recorder: &mut Recorder,
    schedule: &Schedule,
    case: &str,
    device: &Device,
) -> Result<(), VerifyError> {
    let name = format!("steps.{case}.x");
    if !recorder.has(&name) {
        return Ok(());
    }
    let times = recorder.values(&format!("timesteps.{case}"))?;
    let entries = |what: &str| recorder.entries(&format!("steps.{case}.{what}"), device);
    let (states, predictions, noises) = (entries("x")?, entries("pred")?, entries("noise")?);
    let steps = predictions.len().min(noises.len()).min(states.len().saturating_sub(1));
    if times.len() != steps + 1 {
        return Err(recorder.error(format!("expected one step for every time of {name:?}")));
    }
    let mut ours = vec![states[0].clone()];
    for (i, pair) in times.windows(2).enumerate() {
        let [x, epsilon, noise] = [&states[i], &predictions[i], &noises[i]].map(Tensor::clone);
        ours.push(Sampler::Ddpm.step(schedule, x, epsilon, noise, [pair[0], pair[1]]));
    }
    recorder.check_parts(&name, ours, DIFFUSION_BOUND);
    Ok(())
}
