//! Schedules and single steps: diffusers' and the authors'.

use burn::prelude::*;
use wuerstchen::sampler::add_noise;
use wuerstchen::schedule::uniform_timesteps;
use wuerstchen::{ModelFiles, PipelineFolder, Sampler, Schedule};

use crate::compare::Recorder;
use crate::report::VerifyError;
use crate::stages::{DIFFUSION_BOUND, EXACT_BOUND};

/// The schedules of both stages as diffusers has them, and times of other schedulers.
pub(crate) fn scheduler(
    recorder: &mut Recorder,
    files: &ModelFiles,
    device: &Device,
) -> Result<(), VerifyError> {
    let times = recorder.values("t")?;
    for (stage, pipeline) in
        [("prior", PipelineFolder::CASCADE_PRIOR), ("decoder", PipelineFolder::CASCADE_DECODER)]
    {
        let schedule: Schedule = files.config(&pipeline.scheduler())?;
        let alphas: Vec<f32> = times.iter().map(|&t| schedule.alpha_cumprod(t)).collect();
        if recorder.has(&format!("{stage}.alpha_cumprod")) {
            recorder.check_values(&format!("{stage}.alpha_cumprod"), &[&alphas], EXACT_BOUND);
        }
        if recorder.has(&format!("{stage}.steps.x")) {
            steps_of(recorder, &schedule, stage, device)?;
        }
    }
    for name in recorder.names() {
        let steps = name.strip_prefix("timesteps.").and_then(|steps| steps.parse().ok());
        if let Some(steps) = steps {
            recorder.check_values(&name, &[&uniform_timesteps(steps)], EXACT_BOUND);
        }
        if let Some(of) = name.strip_prefix("ratio.").and_then(|name| name.strip_suffix(".ratio")) {
            let alphas = recorder.values(&format!("ratio.{of}.alphas_cumprod"))?;
            let schedule = Schedule::default();
            let times: Vec<f32> = alphas.iter().map(|&alpha| schedule.time_of(alpha)).collect();
            recorder.check_values(&name, &[&times], EXACT_BOUND);
        }
    }
    Ok(())
}

/// Every step by itself, each from the golden state before it.
fn steps_of(
    recorder: &mut Recorder,
    schedule: &Schedule,
    stage: &str,
    device: &Device,
) -> Result<(), VerifyError> {
    let times = recorder.values(&format!("{stage}.steps.timesteps"))?;
    let entries = |what: &str| recorder.entries(&format!("{stage}.steps.{what}"), device);
    let (states, predictions, noises) = (entries("x")?, entries("pred")?, entries("noise")?);
    let steps = predictions.len().min(noises.len()).min(states.len().saturating_sub(1));
    if times.len() != steps + 1 {
        let expected = format!("expected one step for every time of {stage}.steps");
        return Err(recorder.error(expected));
    }
    let mut ours = vec![states[0].clone()];
    for (i, pair) in times.windows(2).enumerate() {
        let [x, epsilon, noise] = [&states[i], &predictions[i], &noises[i]].map(Tensor::clone);
        ours.push(Sampler::Ddpm.step(schedule, x, epsilon, noise, [pair[0], pair[1]]));
    }
    recorder.check_parts(&format!("{stage}.steps.x"), ours, DIFFUSION_BOUND);
    Ok(())
}

/// The authors' schedules at several shifts.
pub(crate) fn schedules(recorder: &mut Recorder) -> Result<(), VerifyError> {
    let times = recorder.values("t")?;
    if recorder.has("limits") {
        let limits = [1.0, 0.0].map(|t| Schedule::default().log_snr(t));
        recorder.check_values("limits", &[&limits], EXACT_BOUND);
    }
    for name in recorder.names() {
        let shift = name.strip_prefix("shift").and_then(|name| name.strip_suffix(".log_snr"));
        let Some(shift) = shift else { continue };
        let shift_value =
            shift.parse().map_err(|_| recorder.error(format!("expected a number in {name:?}")))?;
        let schedule = Schedule { shift: shift_value, ..Schedule::default() };
        let all = |f: &dyn Fn(f32) -> f32| times.iter().map(|&t| f(t)).collect::<Vec<f32>>();
        for (what, values) in [
            ("log_snr", all(&|t| schedule.log_snr(t))),
            ("a", all(&|t| schedule.alpha_cumprod(t).sqrt())),
            ("b", all(&|t| (1.0 - schedule.alpha_cumprod(t)).sqrt())),
            ("condition", all(&|t| schedule.model_time(t))),
        ] {
            recorder.check_values(&format!("shift{shift}.{what}"), &[&values], DIFFUSION_BOUND);
        }
    }
    Ok(())
}

/// The shift of the golden's steps.
const STEPS_SHIFT: f64 = 2.0;

/// Single steps of the authors' samplers, every sample at times of its own.
pub(crate) fn steps(recorder: &mut Recorder, device: &Device) -> Result<(), VerifyError> {
    if !recorder.has("steps.x0") {
        return Ok(());
    }
    let tensor = |name: &str| recorder.tensor::<4>(&format!("steps.{name}"), device);
    let (clean, epsilon, noise) = (tensor("x0")?, tensor("pred")?, tensor("noise")?);
    let times = recorder.values("steps.times")?;
    let [batch, ..] = clean.dims();
    if times.len() != 2 * batch {
        return Err(recorder.error("expected two times for every sample of \"steps.x0\"".into()));
    }
    let schedule = Schedule { shift: STEPS_SHIFT, ..Schedule::default() };
    let sample = |x: &Tensor<4>, i: usize| x.clone().narrow(0, i, 1);
    // The times of all samples that a step starts from, then those that it leads to.
    let pair = |i: usize| [times[i], times[batch + i]];
    // The authors' steps take the clean latents and the noise apart, and need no noised latents.
    let inputs = |i: usize| {
        let (clean, epsilon) = (sample(&clean, i), sample(&epsilon, i));
        (add_noise(&schedule, clean, epsilon.clone(), &pair(i)[..1]), epsilon)
    };
    for (name, sampler) in [("ddpm", Sampler::Ddpm), ("ddim", Sampler::Ddim), ("lcm", Sampler::Lcm)]
    {
        let stepped = (0..batch).map(|i| {
            let (x, epsilon) = inputs(i);
            sampler.noisy_step(&schedule, x, epsilon, sample(&noise, i), pair(i))
        });
        recorder.check_parts(&format!("steps.{name}"), stepped.collect(), DIFFUSION_BOUND);
    }
    Ok(())
}
