//! Which devices there are and which one runs.

use anyhow::Result;
use burn::tensor::Device;
#[cfg(feature = "gpu")]
use burn::tensor::{DeviceKind, DeviceType};
use clap::{Args, ValueEnum};
use serde::Serialize;
#[cfg(feature = "gpu")]
use wuerstchen::kernels::LAUNCHES_OF_A_SUBMIT;

use crate::terminal::counted;

/// Where to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Choice {
    /// The best hardware GPU, else the CPU
    Auto,
    /// The CPU
    Cpu,
    /// Any GPU, a software one if there is no other
    Gpu,
}

/// Arguments of `wuerstchen devices`.
#[derive(Args)]
pub(crate) struct DevicesArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// No device of the kind that was asked for.
#[derive(Debug)]
pub(crate) struct NoDevice;

impl std::fmt::Display for NoDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let reason = if cfg!(feature = "gpu") {
            "expected an adapter with a Vulkan, Metal or DirectX 12 driver, found none"
        } else {
            "this program was built without the feature `gpu`, which is in the default features"
        };
        write!(f, "no GPU: {reason}; --device cpu runs without")
    }
}

impl std::error::Error for NoDevice {}

/// A device and its name.
#[derive(Serialize)]
pub(crate) struct Found {
    /// The name that the driver gives.
    pub(crate) name: String,
    /// `cpu`, or what the driver says about the GPU.
    kind: &'static str,
    /// Whether a GPU is emulated on the CPU.
    software: bool,
    #[serde(skip)]
    pub(crate) device: Device,
}

impl Found {
    /// Whether this is burn's CPU backend.
    pub(crate) fn is_cpu(&self) -> bool {
        self.kind == CPU
    }

    /// The rank of this GPU among others; the lowest is the best choice.
    #[cfg(feature = "gpu")]
    fn rank(&self) -> usize {
        KINDS.iter().position(|(kind, _)| *kind == self.kind).unwrap_or(KINDS.len())
    }
}

const CPU: &str = "cpu";

#[cfg(feature = "gpu")]
type Numbered = fn(usize) -> DeviceKind;

/// Kinds of adapters, the best first.
#[cfg(feature = "gpu")]
const KINDS: [(&str, Numbered); 4] = [
    ("discrete GPU", DeviceKind::DiscreteGpu),
    ("integrated GPU", DeviceKind::IntegratedGpu),
    ("virtual GPU", DeviceKind::VirtualGpu),
    ("software GPU", |_| DeviceKind::Cpu),
];

fn cpu() -> Found {
    Found { name: "CPU".into(), kind: CPU, software: false, device: Device::flex() }
}

/// No adapters, because this program is built without GPU support.
#[cfg(not(feature = "gpu"))]
fn gpus() -> Vec<Found> {
    Vec::new()
}

/// Every adapter, the best first.
#[cfg(feature = "gpu")]
fn gpus() -> Vec<Found> {
    let devices = Device::enumerate(DeviceType::Wgpu).into_vec();
    let count = devices.len();
    let describe = |device: Device| {
        let places = KINDS
            .iter()
            .flat_map(|(name, numbered)| (0..count).map(move |number| (*name, numbered(number))));
        let found = places.into_iter().find(|(_, place)| Device::wgpu(place.clone()) == device);
        let (kind, place) = match found {
            Some((kind, place)) => (kind, Some(place)),
            None => ("GPU of unknown kind", None),
        };
        if let Some(place) = &place {
            // The first query would set up the device with burn's own options. A second call of this fails and changes
            // nothing.
            let options = Device::wgpu_options().device_kind(place.clone());
            let _ = options.tasks_max(LAUNCHES_OF_A_SUBMIT).init();
        }
        let identity = device.identity();
        let software = identity.as_ref().is_none_or(|identity| identity.physical.is_none());
        let name = identity.map_or_else(|| "unnamed".to_owned(), |identity| identity.name);
        Found { name, kind, software, device }
    };
    let mut gpus: Vec<_> = devices.into_iter().map(describe).collect();
    gpus.sort_by_key(|gpu| (gpu.software, gpu.rank()));
    gpus
}

/// Picks the device and says in one line which it is.
///
/// A software GPU is slower than the CPU that emulates it, so `auto` never picks one.
pub(crate) fn choose(choice: Choice) -> Result<Found> {
    choose_for(choice, 0)
}

/// As [`choose`], for one of several processes on this machine, numbered from 0: each takes a GPU of its own as long as
/// there are enough.
pub(crate) fn choose_for(choice: Choice, process: usize) -> Result<Found> {
    let found = match choice {
        Choice::Cpu => cpu(),
        Choice::Gpu => nth_gpu(process, true).ok_or(NoDevice)?,
        Choice::Auto => nth_gpu(process, false).unwrap_or_else(cpu),
    };
    let reason = if choice != Choice::Auto {
        ""
    } else if cfg!(feature = "gpu") {
        ", as there is no hardware GPU"
    } else {
        ", as this program was built without the feature `gpu`"
    };
    if found.is_cpu() {
        tell!("running on the CPU{reason}");
    } else {
        read_early();
        tell!("running on {} ({})", found.name, found.kind);
    }
    Ok(found)
}

/// The GPU of a process. A software GPU is used only if `with_software` allows it and there is no hardware GPU.
fn nth_gpu(process: usize, with_software: bool) -> Option<Found> {
    let (emulated, mut gpus): (Vec<_>, Vec<_>) = gpus().into_iter().partition(|gpu| gpu.software);
    if gpus.is_empty() && with_software {
        gpus = emulated;
    }
    if gpus.is_empty() {
        return None;
    }
    if process >= gpus.len() {
        let gpus = counted(gpus.len(), "GPU");
        say!("this machine has {gpus} and more processes: some share one");
    }
    Some(gpus.swap_remove(process % gpus.len()))
}

/// Makes burn begin to copy from a GPU when a read begins, and not when its bytes are used, so that a step's latents
/// arrive while the next step is prepared.
fn read_early() {
    #[cfg(feature = "gpu")]
    burn_std::set_runtime_kind(burn_std::RuntimeKind::Async);
}

/// Lists all devices.
pub(crate) fn run(args: &DevicesArgs) -> Result<()> {
    let all: Vec<_> = std::iter::once(cpu()).chain(gpus()).collect();
    if args.json {
        return crate::print(&serde_json::to_string(&all)?);
    }
    let line = |found: &Found| format!("{:<20} {}", found.kind, found.name);
    crate::print(&all.iter().map(line).collect::<Vec<_>>().join("\n"))
}
