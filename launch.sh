#!/usr/bin/env bash
# The one door: set up, demo, scratch, train, compare, test, bench. The only place that knows how to call torchrun. bash 3.2 will do.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
loss="dpo + 1.0*sft" # of demo and scratch; with dpo alone correctness falls, see "What to expect" in README.md

usage() {
    cat <<'TEXT'
usage: [N=processes] ./launch.sh [COMMAND] [flags]

  (none)          demo: DPO of the embedded model on the embedded pairs, before and after side by side
  scratch         the same story from random weights: SFT, then DPO (about 15 minutes on 2 cores)
  train [flags]   dpo/train.py under torchrun; train --help lists the flags
  compare [flags] the embedded model trained with every loss, as one table; the runs stay in
                  runs/compare, and a finished one is not trained again; compare --help lists the flags
  test [--all]    the quick tests, or all of them; further words go to pytest
  bench [flags]   ours beside the book's loop and TRL: pairs/s, memory, held-out loss (about 20 minutes on 2 cores);
                  the figures go to bench.json; bench --help lists the flags
  bench growth [flags]   how cost grows with model, prompt, batch and processes; bench growth --help

The first call makes .venv and installs into it, unless an environment with torch is active.
N is the number of processes (default: one per CUDA device, else 1).
train ends with 0 when done, 2 for an error, 143 when it was stopped by a signal (continue with --resume).
TEXT
}

# setup EXTRA: $python can import torch and what EXTRA names afterwards.
setup() {
    if python -c 'import torch' 2>/dev/null; then
        python=python
        python -c 'import numpy, safetensors, tiktoken, tqdm' 2>/dev/null && return
        echo "error: the active environment has torch but not all of the rest; deactivate it, or in it run:" \
            "pip install -c '$root/constraints.txt' -e '$root[$1]'" >&2
        exit 2
    fi
    local stamp="$root/.venv/installed" wanted
    wanted="$1 $(cat "$root/setup.cfg" "$root/constraints.txt" | cksum)"
    python="$root/.venv/bin/python"
    if [ -x "$python" ] && grep -qxF "$wanted" "$stamp" 2>/dev/null; then
        return
    fi
    if [ ! -x "$python" ]; then
        local base
        base=$(find_python)
        echo "making $root/.venv with $("$base" --version)"
        "$base" -m venv "$root/.venv" || {
            rm -rf "$root/.venv"
            echo "error: $base cannot make a virtual environment (Debian: apt install python3-venv)" >&2
            exit 2
        }
    fi
    echo "installing into $root/.venv (once): the versions in constraints.txt, extra '$1'"
    "$python" -m pip install --disable-pip-version-check -c "$root/constraints.txt" -e "$root[$1]"
    echo "$wanted" >>"$stamp"
}

find_python() {
    local name
    for name in python3 python3.13 python3.12 python3.11 python3.10; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    echo "error: no Python of version 3.10 or newer is on the PATH; install one" >&2
    exit 2
}

processes() {
    if [ -n "${N:-}" ]; then
        case $N in *[!0-9]* | 0) echo "error: N is '$N', it must be a number of processes of at least 1" >&2; exit 2 ;; esac
        echo "$N"
    else
        "$python" -c 'import torch; print(torch.cuda.device_count() or 1)'
    fi
}

# train FLAGS: checked in one process first, so that what is wrong is said in one line; then under torchrun.
train() {
    local count cores status=0 signalled=""
    count=$(processes)
    PLANNED_PROCESSES=$count "$python" "$root/dpo/train.py" --dry-run "$@" || exit $?
    case " $* " in *" --help "* | *" -h "* | *" --dry-run "*) return ;; esac
    cores=$(getconf _NPROCESSORS_ONLN)
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores / count > 0 ? cores / count : 1))}
    # --standalone: a free port. --local-addr: torchrun would publish the host's name, which may resolve to nothing.
    "$python" -m torch.distributed.run --standalone --local-addr 127.0.0.1 --nproc-per-node "$count" "$root/dpo/train.py" "$@" &
    local job=$!
    trap 'signalled=1; kill -TERM $job 2>/dev/null' TERM INT
    wait $job || status=$?
    while kill -0 $job 2>/dev/null; do wait $job || status=$?; done # a signal ends `wait` before the job
    trap - TERM INT
    [ -z "$signalled" ] || exit 143
    [ $status -eq 0 ] || exit 2
}

# say_and_train OUT FLAGS: shows the command that does the same without this script, into a folder of its own.
say_and_train() {
    local word line out=$1
    shift
    line="torchrun --local-addr 127.0.0.1 --nproc_per_node=$(processes) dpo/train.py"
    for word in "$@"; do
        case $word in *[!A-Za-z0-9_./=:-]*) word="'$word'" ;; esac
        line="$line $word"
    done
    printf '\n%s\n\n' "$line"
    train "$@" --out "$out"
}

demo() {
    setup report,hub
    local out
    out=runs/demo-$(date +%Y%m%d-%H%M%S)
    say_and_train "$out" --loss "$loss" --batch 32 --steps 200 --eval-every 100 "$@"
    "$python" "$root/dpo/evaluate.py" --policy "$out"
}

scratch() {
    setup report,hub
    local out
    out=runs/scratch-$(date +%Y%m%d-%H%M%S)
    "$python" "$root/data/build.py" rules --sft --count 40000 --out "$out/sft.jsonl"
    say_and_train "$out/sft" --init random:tiny --pairs "$out/sft.jsonl" --loss sft --steps 2500 --weight-decay 0.1 --eval-every 500
    say_and_train "$out/dpo" --init "$out/sft" --loss "$loss" --batch 32 --steps 200 --eval-every 100 "$@"
    "$python" "$root/dpo/evaluate.py" --policy "$out/dpo"
}

compare() {
    setup report,hub
    exec "$python" "$root/dpo/compare.py" "$@"
}

run_tests() {
    setup test
    "$python" -c 'import pytest, hypothesis, transformers, peft' 2>/dev/null || {
        echo "error: the active environment has torch but not the test extra; pip install -c constraints.txt -e '.[test]', or deactivate it" >&2
        exit 2
    }
    cd "$root"
    if [ "${1:-}" = --all ]; then
        shift
        exec "$python" -m pytest "$@"
    fi
    exec "$python" -m pytest -m "not slow" "$@"
}

bench() {
    if [ "${1:-}" = growth ]; then
        shift
        setup report,hub
        exec "$python" "$root/tests/bench/growth.py" "$@"
    fi
    setup peers
    exec "$python" "$root/tests/bench/table.py" "$@"
}

case ${1:-} in
    -h | --help | help) usage ;;
    "" | -*)
        case " $* " in *" --out"* | *" --dry-run "* | *" --resume "*)
            echo "error: the demo names its own folder; for flags such as --out use ./launch.sh train" >&2 && exit 2 ;;
        esac
        demo "$@"
        ;;
    scratch) shift && scratch "$@" ;;
    train) shift && setup report,hub && train "$@" ;;
    compare) shift && compare "$@" ;;
    test) shift && run_tests "$@" ;;
    bench) shift && bench "$@" ;;
    *) echo "error: there is no command '$1'; ./launch.sh --help lists them" >&2 && exit 2 ;;
esac
