#!/usr/bin/env bash
# Trains with two and more processes over MPI, beside the same with one, and lets them fail in every way that is told of
# in docs/training.md. Installs MPI and libclang with apt-get if they are missing.
#
#     bash tests/mpi.sh                 # about five minutes after the build
#     bash tests/mpi.sh speed           # only the speed of two processes against one with two shares
set -euo pipefail
cd "$(dirname "$0")/.."
root="$PWD"
target="$(realpath -m "${CARGO_TARGET_DIR:-target}")"
scratch="$(mktemp -d)"
step() { printf '\n== %s\n' "$*"; }
fail() {
    echo "FAILED: $*" >&2
    exit 1
}
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$scratch"' EXIT

if ! command -v mpicc >/dev/null || ! command -v mpirun >/dev/null || ! ls /usr/lib/llvm-*/lib/libclang*.so* >/dev/null 2>&1; then
    if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
        step "install Open MPI and libclang"
        apt-get update -qq && apt-get install -y -qq libopenmpi-dev openmpi-bin libclang-dev >/dev/null
    else
        fail "needs mpicc, mpirun and libclang: install libopenmpi-dev, openmpi-bin and libclang-dev"
    fi
fi

step "build"
# All of the workspace: one set of features, so that nothing is built twice.
cargo build --release --workspace --bins --features wuerstchen-mpi/mpi
alone="$target/release/wuerstchen"
program="$target/release/wuerstchen-mpi"

# Open MPI refuses root, and more processes than cores, unless told.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
# A process that waits gives its core to others.
launch=(mpirun --oversubscribe --bind-to none --mca btl self,vader --mca mpi_yield_when_idle 1)
smoke=(-c "$root/configs/smoke.toml" --device cpu)

# Changes of the config: each stage with so many steps, samples of a batch and shares.
sizes() {
    for stage in a b c; do
        echo "--set $stage.steps=$1 --set $stage.batch_size=$2 --set $stage.shards=$3"
    done
    echo "--set b.cached_scenes=64 --set c.cached_scenes=64"
}

# What of a run's metrics is no time.
metrics() { grep -oE '"(step|loss|grad_norm|learning_rate)":[^,}]*' "$1"; }

# Two runs have the same states, weights, sample grids and metrics.
same() {
    local file count=0
    while read -r file; do
        cmp "$1/$file" "$2/$file" || fail "$file of $1 and $2 differ"
        count=$((count + 1))
    done < <(cd "$1" && find . -name '*.safetensors' -o -name 'samples-*.png')
    for file in "$1"/*/metrics.jsonl; do
        cmp <(metrics "$file") <(metrics "$2/${file#"$1/"}") || fail "metrics of $1 and $2 differ: $file"
    done
    [ "$count" -gt 0 ] || fail "nothing to compare in $1"
    echo "$count files and the metrics are equal"
}

if [ "${1:-}" = speed ]; then
    step "samples per second, by turns"
    rate() { tail -n 1 "$1/$2/metrics.jsonl" | grep -oE '"samples_per_sec":[0-9.]+' | cut -d: -f2; }
    for stage in a c; do
        base=(train "$stage" -c "$root/configs/shapes.toml" --device cpu --init "$root/models/shapes.safetensors"
            --max-seconds "${SECONDS_EACH:-15}" --set "$stage.shards=2")
        if [ "$stage" = c ]; then base+=(--set c.cached_scenes=0); fi
        for turn in $(seq "${TURNS:-3}"); do
            rm -rf "$scratch/one" "$scratch/two"
            "$alone" "${base[@]}" -o "$scratch/one" 2>/dev/null
            "${launch[@]}" -x RAYON_NUM_THREADS=1 -n 2 "$program" "${base[@]}" -o "$scratch/two" 2>/dev/null
            echo "stage $stage, turn $turn: one process $(rate "$scratch/one" $stage), two $(rate "$scratch/two" $stage)"
        done
    done
    exit
fi

step "two processes make the bits of one with two shares: all stages"
two=($(sizes 12 16 2))
"$alone" train all "${smoke[@]}" "${two[@]}" -o "$scratch/one" 2>"$scratch/log"
"${launch[@]}" -n 2 "$program" train all "${smoke[@]}" "${two[@]}" -o "$scratch/two" 2>"$scratch/log2"
same "$scratch/one" "$scratch/two"
[ "$(grep -c "stage c: step 12 of 12" "$scratch/log2")" = 1 ] || fail "not one line of progress: $(cat "$scratch/log2")"

step "the same with Muon"
muon=("${two[@]}" --set c.optimizer.method=muon --set a.optimizer.method=muon)
"$alone" train all "${smoke[@]}" "${muon[@]}" -o "$scratch/one-muon" 2>"$scratch/log"
"${launch[@]}" -n 2 "$program" train all "${smoke[@]}" "${muon[@]}" -o "$scratch/two-muon" 2>"$scratch/log"
same "$scratch/one-muon" "$scratch/two-muon"
if cmp -s "$scratch/one/c/state.safetensors" "$scratch/one-muon/c/state.safetensors"; then fail "Muon changes nothing"; fi

step "six shares on one, two and three processes"
six=($(sizes 6 12 6))
"$alone" train all "${smoke[@]}" "${six[@]}" -o "$scratch/six" 2>"$scratch/log"
for size in 2 3; do
    "${launch[@]}" -n "$size" "$program" train all "${smoke[@]}" "${six[@]}" -o "$scratch/six-$size" 2>"$scratch/log"
    same "$scratch/six" "$scratch/six-$size"
done

step "a Stage B over tokens, dropout, scenes drawn afresh"
tokens=(-c "$root/configs/shapes-v1.toml" --device cpu $(sizes 2 8 4) --set b.cached_scenes=0
    --set model.decoder.dropout=0.2 --set model.prior.dropout=0.2)
"$alone" train all "${tokens[@]}" -o "$scratch/tokens" 2>"$scratch/log"
"${launch[@]}" -n 2 "$program" train all "${tokens[@]}" -o "$scratch/tokens-2" 2>"$scratch/log"
same "$scratch/tokens" "$scratch/tokens-2"

step "a LoRA, with its cache"
mkdir "$scratch/pictures"
i=0
for picture in "$scratch"/one/?/samples-*.png "$scratch"/six/?/samples-*.png; do
    for _ in 1 2 3; do
        cp "$picture" "$scratch/pictures/$i.png"
        echo "picture number $i" > "$scratch/pictures/$i.txt"
        i=$((i + 1))
    done
done
lora=(train lora -c "$root/configs/lora.toml" --device cpu --set "corpus.folder=$scratch/pictures" --set c.steps=4
    --set c.batch_size=4 --set c.sample_every=4 --set c.shards=2 --set samples.prior_steps=2)
"$alone" "${lora[@]}" --cache "$scratch/cache1" -o "$scratch/lora1" 2>"$scratch/log"
"${launch[@]}" -n 2 "$program" "${lora[@]}" --cache "$scratch/cache2" -o "$scratch/lora2" 2>"$scratch/log"
same "$scratch/lora1" "$scratch/lora2"

# Starts a job in the background: its folder, then the number of processes, then what else mpirun takes.
start() {
    local run="$1" size="$2"
    shift 2
    "${launch[@]}" -n "$size" "$@" 2>"$run.log" &
    job=$!
}
# The process of a rank of the job.
process_of() {
    local process
    for process in $(pgrep -P "$job"); do
        if tr '\0' '\n' < "/proc/$process/environ" | grep -qx "OMPI_COMM_WORLD_RANK=$1"; then echo "$process"; fi
    done
}
# Waits until a run has done so many steps of Stage A.
wait_for_steps() {
    for _ in $(seq 600); do
        if [ -e "$1/a/metrics.jsonl" ] && [ "$(wc -l < "$1/a/metrics.jsonl")" -ge "$2" ]; then return; fi
        kill -0 "$job" 2>/dev/null || fail "the job has ended before step $2: $(cat "$1.log")"
        sleep 0.1
    done
    fail "no $2 steps in a minute: $(cat "$1.log")"
}
# The job ends within so many seconds with the text in its log, without success, and no process is left.
ends() {
    local run="$1" seconds="$2" text="$3" begun processes code=0
    processes="$(pgrep -P "$job" || true)"
    begun=$(date +%s%N)
    for _ in $(seq $((seconds * 10))); do
        kill -0 "$job" 2>/dev/null || break
        sleep 0.1
    done
    if kill -0 "$job" 2>/dev/null; then
        for process in $processes; do kill -KILL "$process" || true; done
        fail "the job still runs after $seconds s: $(cat "$run.log")"
    fi
    wait "$job" || code=$?
    [ "$code" != 0 ] || fail "the job has ended without an error: $(cat "$run.log")"
    grep -qE "$text" "$run.log" || fail "expected $text: $(cat "$run.log")"
    for process in $processes; do
        if kill -0 "$process" 2>/dev/null && grep -q wuerstchen "/proc/$process/cmdline"; then fail "process $process is left"; fi
    done
    # A job that fails at once may have had no processes yet when they were listed.
    if pgrep -f "^$program .*$run" >/dev/null; then fail "a process is left: $(pgrep -af "^$program .*$run")"; fi
    echo "ended after $((($(date +%s%N) - begun) / 1000000)) ms with code $code: $(grep -E "$text" "$run.log" | head -1)"
}
# The message is there once: of one process.
once() { [ "$(grep -cE "^error: " "$1.log")" = 1 ] || fail "not one message: $(cat "$1.log")"; }

long=(train a "${smoke[@]}" --set a.steps=400 --set a.batch_size=16 --set a.shards=4 --set a.sample_every=400)
step "the run that those after it are compared with"
"$alone" "${long[@]}" -o "$scratch/straight" 2>"$scratch/log"

step "SIGTERM on rank 1 stops all at the same step, with a state"
run="$scratch/long"
start "$run" 2 "$program" "${long[@]}" -o "$run"
wait_for_steps "$run" 30
kill -TERM "$(process_of 1)"
wait "$job" || fail "$(cat "$run.log")"
grep -q "stopped; go on with --resume auto" "$run.log" || fail "$(cat "$run.log")"
echo "stopped after $(wc -l < "$run/a/metrics.jsonl") of 400 steps"

step "four processes go on with what two have left; kill -9 of rank 1 ends them"
start "$run" 4 "$program" "${long[@]}" -o "$run" --resume auto
wait_for_steps "$run" 120
kill -KILL "$(process_of 1)"
ends "$run" 20 "exited on signal 9"

step "one process goes on to the bits of a run that was never stopped"
"$alone" "${long[@]}" -o "$run" --resume auto 2>"$scratch/log"
cmp "$run/a/state.safetensors" "$scratch/straight/a/state.safetensors" || fail "the states differ"
cmp <(metrics "$run/a/metrics.jsonl") <(metrics "$scratch/straight/a/metrics.jsonl") || fail "the metrics differ"
echo "state and metrics are equal"

step "mpirun that is ended itself, and gives the processes time"
start "$scratch/ended" 2 --mca odls_base_sigkill_timeout 5 "$program" "${long[@]}" --set a.steps=100000 -o "$scratch/ended"
wait_for_steps "$scratch/ended" 10
kill -TERM "$job"
ends "$scratch/ended" 30 "stopped; go on with --resume auto"
[ -s "$scratch/ended/a/state.safetensors" ] || fail "no state"

step "a deadline"
start "$scratch/deadline" 2 "$program" "${long[@]}" --set a.steps=100000 --max-seconds 3 -o "$scratch/deadline"
wait "$job" || fail "$(cat "$scratch/deadline.log")"
grep -q "stopped; go on" "$scratch/deadline.log" || fail "$(cat "$scratch/deadline.log")"

step "a process that is stopped is missed"
run="$scratch/frozen"
start "$run" 2 "$program" "${long[@]}" --set a.steps=100000 --stall-seconds 3 -o "$run"
wait_for_steps "$run" 10
kill -STOP "$(process_of 1)"
ends "$run" 20 "rank 0 of 2 on .*, after step [0-9]+: nothing done for 5 s .*waiting for the other processes"

# Rank 0 and rank 1 run in folders of their own, in which the pictures lie. Cut out of larger ones, they are read anew for
# every batch.
mkdir "$scratch/first" "$scratch/second"
apart() {
    rm -rf "$scratch"/first/pictures "$scratch"/second/pictures
    cp -r "$scratch/pictures" "$scratch/first"
    cp -r "$scratch/pictures" "$scratch/second"
    pictures=("${long[@]}" --set a.steps=100000 --set a.max_zoom=2 --set corpus.folder=pictures
        --set b.unknown_words=0 --set c.unknown_words=0)
}
step "a broken picture on rank 1 ends all, with a state"
apart
run="$scratch/broken"
start "$run" 1 -wdir "$scratch/first" "$program" "${pictures[@]}" -o "$run" : \
    -n 1 -wdir "$scratch/second" "$program" "${pictures[@]}" -o "$run"
wait_for_steps "$run" 10
for picture in "$scratch"/second/pictures/*.png; do echo broken > "$picture"; done
ends "$run" 20 "^error: rank 1 of 2 on .*: training has stopped and saved its state: cannot read the picture pictures/"
once "$run"
[ -s "$run/a/state.safetensors" ] || fail "no state"

step "a folder that is missing on rank 1"
rm -r "$scratch/second/pictures"
run="$scratch/missing"
start "$run" 1 -wdir "$scratch/first" "$program" "${pictures[@]}" -o "$run" : \
    -n 1 -wdir "$scratch/second" "$program" "${pictures[@]}" -o "$run"
ends "$run" 20 "^error: rank 1 of 2 on .*pictures"
once "$run"

step "a process that waits for a file is missed"
apart
run="$scratch/stalled"
start "$run" 1 -wdir "$scratch/first" "$program" "${pictures[@]}" --stall-seconds 3 -o "$run" : \
    -n 1 -wdir "$scratch/second" "$program" "${pictures[@]}" --stall-seconds 3 -o "$run"
wait_for_steps "$run" 10
mkfifo "$scratch/fifo"
for picture in "$scratch"/second/pictures/*.png; do ln -f "$scratch/fifo" "$picture"; done
ends "$run" 20 "rank 1 of 2 on .*, after step [0-9]+: nothing done for 3 s .*computing"
once "$run"

step "two configs"
run="$scratch/configs"
start "$run" 1 "$program" "${long[@]}" -o "$run" : -n 1 "$program" "${long[@]}" --set a.quantized=0.25 -o "$run"
ends "$run" 20 "^error: rank 1 of 2 on .*: expected a.quantized = 0.5 as rank 0 has, found a.quantized = 0.25"
once "$run"

step "shares that two processes cannot divide"
run="$scratch/shares"
start "$run" 2 "$program" "${long[@]}" --set a.shards=1 -o "$run"
ends "$run" 20 "^error: rank 0 of 2 on .*: stage a config: shards must be a multiple of the 2 processes"
once "$run"
[ ! -e "$run/a" ] || fail "work has begun"

step "a command line that cannot be run"
start "$run" 2 "$program" train all --no-such-option
ends "$run" 20 "^error: rank 0 of 2 on .*: unexpected argument '--no-such-option'"
once "$run"

step "a launcher of another MPI"
for variable in OMPI_COMM_WORLD_SIZE PMI_SIZE SLURM_NTASKS; do
    code=0
    env "$variable=2" "$program" "${long[@]}" -o "$run" 2>"$scratch/log" || code=$?
    [ "$code" = 2 ] || fail "code $code: $(cat "$scratch/log")"
    grep "expected 2 processes as $variable says, found 1" "$scratch/log" || fail "$(cat "$scratch/log")"
done

step "a panic on rank 1"
# The system refuses new threads to a process, which only those of common users can be told.
run="$scratch/panic"
if [ "$(id -u)" = 0 ]; then
    common="$scratch/common"
    mkdir "$common"
    cp "$program" "$root/configs/smoke.toml" "$common"
    chown -R nobody "$common"
    chmod 711 "$scratch"
    run="$common/panic"
    panics=("${long[@]}")
    panics[3]="$common/smoke.toml"
    runuser -u nobody -- env HOME="$common" TMPDIR="$common" "${launch[@]}" -n 2 "$common/wuerstchen-mpi" "${panics[@]}" \
        --set a.steps=100000 -o "$run" 2>"$run.log" &
    wrapper=$!
    for _ in $(seq 50); do
        job="$(pgrep -P "$wrapper" || true)"
        if [ -n "$job" ]; then break; fi
        sleep 0.1
    done
    wait_for_steps "$run" 10
    runuser -u nobody -- prlimit --pid "$(process_of 1)" --nproc=1
    job=$wrapper
else
    start "$run" 2 "$program" "${long[@]}" --set a.steps=100000 -o "$run"
    wait_for_steps "$run" 10
    prlimit --pid "$(process_of 1)" --nproc=1
fi
ends "$run" 20 "^error: rank 1 of 2 on .*, after step [0-9]+: panicked at .*: .*thread"
once "$run"
grep -q -- "--resume auto" "$run.log" || fail "$(cat "$run.log")"

step "all checks of MPI passed"
