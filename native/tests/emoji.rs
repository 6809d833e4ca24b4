//! The corpus `emoji`, with art of forty signs in place of what is fetched.

mod program;

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use program::{scratch, text, wuerstchen};

/// Signs of the art.
const SIGNS: usize = 40;

/// Writes art as `models/fetch_emoji.sh` leaves it.
fn write_art(folder: &Path) {
    let points = |i: usize| format!("1f{i:03x}");
    let body = |i: usize| {
        let red = 6 * i;
        format!(r#"<circle cx="8" cy="8" r="{}" fill="rgb({red},90,90)"/>"#, 8.0 - 0.1 * i as f32)
    };
    let name = |i: usize| {
        let points = points(i).to_uppercase();
        json!({"hexcode": points, "label": format!("dot {i}"), "group": 3, "subgroup": 0})
    };
    let names: Vec<Value> = (0..SIGNS).map(name).collect();
    let icons: Value = (0..SIGNS).map(|i| (format!("dot-{i}"), json!({"body": body(i)}))).collect();
    let chars: Value = (0..SIGNS).map(|i| (points(i), json!(format!("dot-{i}")))).collect();
    fs::create_dir_all(folder.join("emojibase-data/en")).unwrap();
    fs::write(folder.join("emojibase-data/en/data.json"), json!(names).to_string()).unwrap();
    for pack in ["noto", "noto-v1", "fluent-emoji-flat", "twemoji"] {
        fs::create_dir_all(folder.join(pack)).unwrap();
        let file = json!({"icons": icons, "width": 16, "height": 16}).to_string();
        fs::write(folder.join(pack).join("icons.json"), file).unwrap();
        fs::write(folder.join(pack).join("chars.json"), chars.to_string()).unwrap();
    }
}

/// A model of the signs trains, names the words it does not know, and is evaluated on its own corpus.
#[test]
fn a_model_of_signs_is_trained_and_evaluated() {
    let folder = scratch("emoji");
    let [art, run] = ["art", "run"].map(|name| folder.join(name).display().to_string());
    let smoke = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("configs/smoke.toml");
    let smoke = smoke.display().to_string();
    let art_here = format!("corpus.art={art}");
    let mut train = vec!["train", "all", "-c", &smoke, "-o", &run, "--device", "cpu"];
    let changes = [
        "corpus.scenes=emoji",
        &art_here,
        "a.steps=2",
        "b.steps=2",
        "c.steps=2",
        "a.edge_loss=1.0",
        "a.max_zoom=2",
        "b.cached_scenes=64",
        "c.cached_scenes=64",
    ];
    train.extend(changes.iter().flat_map(|change| ["--set", change]));

    let output = wuerstchen(&train);
    assert_eq!(output.status.code(), Some(4), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("run models/fetch_emoji.sh"), "{}", text(&output.stderr));
    assert!(!Path::new(&run).exists());

    write_art(Path::new(&art));
    let output = wuerstchen(&train);
    assert!(output.status.success(), "{}", text(&output.stderr));

    let model = folder.join("run/model.safetensors").display().to_string();
    let picture = folder.join("out.png").display().to_string();
    let prompt = "a blue dot 3 above a spaceship";
    let output = wuerstchen(&["generate", prompt, "-m", &model, "-o", &picture, "--device", "cpu"]);
    let told = text(&output.stderr);
    assert!(output.status.success() && told.contains("does not know: spaceship\n"), "{told}");

    let eval = ["eval", "-m", &model, "--art", &art, "--prompts", "8", "--json", "--device", "cpu"];
    let output = wuerstchen(&eval);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("PSNR"), "{}", text(&output.stderr));
    let rows: Vec<Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    // Seven kinds and splits from four sources each.
    assert_eq!(rows.len(), 28);
    assert!(rows.iter().all(|row| row["source"] == "chance" || row["prompts"] == 8), "{rows:?}");
    let chance = rows.iter().find(|row| row["source"] == "chance").unwrap();
    assert!(
        (chance["scores"]["concept"].as_f64().unwrap() - 1.0 / SIGNS as f64).abs() < 1e-9,
        "{chance}"
    );
}
