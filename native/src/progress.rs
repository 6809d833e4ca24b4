//! The progress of long work, on stderr.

use std::ops::ControlFlow;

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use wuerstchen::{Progress, Stage};

/// A bar over bytes. Without a terminal there is no bar: a line says what begins.
pub(crate) fn bytes_bar(what: &str, total: usize) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{msg:<28} {bar:32} {bytes}/{total_bytes}, {eta} left")
            .expect("the template is well-formed");
    let bar = ProgressBar::new(total as u64).with_style(style).with_message(what.to_owned());
    if bar.is_hidden() {
        say!("{what}: {}", HumanBytes(total as u64));
    }
    bar
}

/// A bar over the steps of the stage that runs.
pub(crate) struct StepsBar(ProgressBar);

impl Default for StepsBar {
    fn default() -> Self {
        let style = ProgressStyle::with_template("{msg:<28} {bar:32} {pos}/{len}, {eta} left")
            .expect("the template is well-formed");
        Self(ProgressBar::new(0).with_style(style))
    }
}

impl StepsBar {
    /// Shows a step; the work goes on.
    pub(crate) fn show(&self, progress: &Progress) -> ControlFlow<()> {
        self.0.set_message(match progress.stage {
            Stage::Text => "text",
            Stage::Prior => "image embedding (Stage C)",
            Stage::Decoder => "latents (Stage B)",
            Stage::Vqgan => "picture (Stage A)",
        });
        self.0.set_length(progress.steps as u64);
        self.0.set_position(progress.step as u64);
        ControlFlow::Continue(())
    }

    /// Removes the bar.
    pub(crate) fn finish(&self) {
        self.0.finish_and_clear();
    }
}
