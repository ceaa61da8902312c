#!/usr/bin/env bash
# The one door: set up, demo, scratch, train, check, compare, online, test, torture, bench. bash 3.2 will do.
# gpt/launch/launcher.py, behind it, is the only place that knows how to call torchrun.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ ! -f "$root/gpt/launch/launcher.py" ]; then # sbatch runs a copy of this script, in a folder of Slurm's
    root=${SLURM_SUBMIT_DIR:-$root}
    if [ ! -f "$root/gpt/launch/launcher.py" ]; then
        echo "error: launch.sh finds no gpt/launch/launcher.py in $root; call sbatch in the folder where launch.sh is" >&2
        exit 2
    fi
fi
loss="dpo + 1.0*sft" # of demo and scratch; with dpo alone correctness falls, see "What to expect" in README.md

usage() {
    cat <<'TEXT'
usage: [N=processes] ./launch.sh [COMMAND] [flags]

  (none)          demo: DPO of the embedded model on the embedded pairs, before and after side by side
  scratch         the same story from random weights: SFT, then DPO (about 15 minutes on 2 cores)
  train [flags]   dpo/train.py under torchrun; train --help lists the flags
  check [flags]   whether machine, network and the flags of train are fit for it; takes seconds
  compare [flags] the embedded model trained with every loss, as one table; the runs stay in
                  runs/compare, and a finished one is not trained again; compare --help lists the flags
  online [flags]  rounds of sample, score, train from the model --init; without it from a weak start, which is made first
                  (some 5 minutes on 2 cores); online --help lists the flags
  test [--all]    style, types and the quick tests, or all of them; further words go to pytest
  torture         runs killed, cut off and starved, and resumed, with figures; torture --help lists its flags
  bench [flags]   ours beside the book's loop and TRL: pairs/s, memory, held-out loss (about 20 minutes on 2 cores);
                  the figures go to bench.json; bench --help lists the flags
  bench growth [flags]   how cost grows with model, prompt, batch and processes; bench growth --help

The first call makes .venv and installs into it, unless an environment with torch is active.

train and check read these variables:
  N             processes on each machine (default: one per CUDA device, else 1)
  RESTARTS      how often they are started again, from the newest checkpoint, after one was killed (default 3)
  NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT
                on several machines, the same command on each: how many there are, which one this is (from 0), and
                where machine 0 is reached (default port 29500). A Slurm job needs none of them:
                sbatch --nodes=2 --ntasks-per-node=1 launch.sh train ...
  WAIT          seconds to wait for the other machines (default 600)
With --debug they show every log that torch has.

They end with 0 when done, 2 for an error, 143 when stopped by a signal (continue with --resume), 1 for anything else.
The first signal lets them save and leave, which takes half a minute at most; another one ends them at once.
TEXT
}

# setup EXTRA: $python can import torch and what EXTRA names afterwards.
setup() {
    # looked for, not imported: that takes seconds
    local found='import sys; from importlib.util import find_spec; sys.exit(not all(map(find_spec, sys.argv[1:])))'
    if python -c "$found" torch 2>/dev/null; then
        python=python
        python -c "$found" numpy safetensors tiktoken tqdm && return
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

# on_every_machine WORDS: a job of Slurm runs this script on its first machine only, or, after salloc, on none of them;
# srun starts it on each. What srun started is a numbered step. Slurm's highest numbers are of batch scripts and shells.
on_every_machine() {
    if [ -z "${SLURM_JOB_ID:-}" ] || [ -n "${NNODES:-}" ]; then return; fi
    case ${SLURM_STEP_ID:-} in "" | 42949672[0-9][0-9]) ;; *) return ;; esac
    if ! command -v srun >/dev/null; then
        [ "${SLURM_NNODES:-1}" -gt 1 ] || return 0
        echo "error: this is a job of Slurm on $SLURM_NNODES machines, but srun is not on the PATH" >&2
        exit 2
    fi
    # exec: a signal to the batch script, as by sbatch --signal=B:TERM@120, is then one to srun, which passes it on.
    # wait: when a machine has ended, the others have a minute to save and leave.
    exec srun --nodes="${SLURM_NNODES:-1}" --ntasks="${SLURM_NNODES:-1}" --ntasks-per-node=1 --cpu-bind=none --export=ALL \
        --kill-on-bad-exit=0 --wait=60 bash "$root/launch.sh" "$@"
}

# start FLAGS SCRIPT FLAGS: a script in many processes. The launcher takes this script's place, so that there is one process
# to signal and to kill.
start() {
    exec "$python" "$root/gpt/launch/launcher.py" "$@"
}

# show_and_train OUT FLAGS: as a part of this script. It stops when this script is gone.
show_and_train() {
    local out=$1
    shift
    (start --show --follow --first "$root/dpo/train.py" "$root/dpo/train.py" "$@" --out "$out") || exit $?
}

demo() {
    setup report,hub
    local out
    out=runs/demo-$(date +%Y%m%d-%H%M%S)
    show_and_train "$out" --loss "$loss" --batch 32 --steps 200 --eval-every 100 "$@"
    "$python" "$root/dpo/evaluate.py" --policy "$out"
}

scratch() {
    setup report,hub
    case " $* " in *" --help "* | *" -h "*) exec "$python" "$root/dpo/train.py" --help ;; esac
    "$python" "$root/dpo/train.py" --dry-run --init random:tiny --loss "$loss" "$@" || exit $? # said before minutes of SFT
    local out
    out=runs/scratch-$(date +%Y%m%d-%H%M%S)
    "$python" "$root/data/build.py" rules --sft --count 40000 --out "$out/sft.jsonl"
    show_and_train "$out/sft" --init random:tiny --pairs "$out/sft.jsonl" --loss sft --steps 2500 --weight-decay 0.1 --eval-every 500
    show_and_train "$out/dpo" --init "$out/sft" --loss "$loss" --batch 32 --steps 200 --eval-every 100 "$@"
    "$python" "$root/dpo/evaluate.py" --policy "$out/dpo"
}

compare() {
    setup report,hub
    exec "$python" "$root/dpo/compare.py" "$@"
}

online() {
    setup report,hub
    case " $* " in *" --init"* | *" --resume "* | *" --help "* | *" -h "*) exec "$python" "$root/dpo/online.py" "$@" ;; esac
    "$python" "$root/dpo/online.py" --dry-run "$@" || exit $? # what is wrong with the flags is said before minutes of training
    local out
    out=runs/online-$(date +%Y%m%d-%H%M%S)
    # a start that dpo alone made polite and often wrong, see "What to expect" in README.md
    show_and_train "$out/start" --loss dpo --batch 32 --steps 150 --eval-every 0
    exec "$python" "$root/dpo/online.py" --init "$out/start" --out "$out/rounds" --prompts 1000 "$@"
}

run_tests() {
    local extras=test
    [ "${1:-}" != --all ] || extras=test,fabric,tensorboard,wandb
    setup "$extras"
    "$python" -c 'import pytest, xdist, hypothesis, transformers, peft, ruff, mypy' 2>/dev/null || {
        echo "error: the active environment has torch but not the test extra; pip install -c constraints.txt -e '.[test]', or deactivate it" >&2
        exit 2
    }
    cd "$root"
    "$python" -m ruff check --quiet . || exit $?
    "$python" -m ruff format --quiet --check . || {
        echo "error: these files are not formatted: run ruff format ." >&2
        "$python" -m ruff format --check . >&2
        exit 1
    }
    "$python" -m mypy --no-error-summary || exit $?
    if [ "${1:-}" = --all ]; then
        shift
        [ $# = 0 ] || exec "$python" -m pytest "$@"
        local code=0 # most of it starts processes and waits for them: two at a time take half as long
        OMP_NUM_THREADS=1 "$python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not alone" || code=$?
        [ $code -le 1 ] || exit $code # by Ctrl+C, for one
        "$python" -m pytest -m alone || code=$?
        exit $code
    fi
    exec "$python" -m pytest -m "not slow" "$@"
}

torture() {
    setup test
    exec "$python" "$root/tests/torture/run.py" "$@"
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
    train)
        setup report,hub
        on_every_machine "$@"
        shift && start --first "$root/dpo/train.py" "$root/dpo/train.py" "$@"
        ;;
    check)
        setup report,hub
        on_every_machine "$@"
        export RESTARTS=0
        shift && start --verbose ${1+--first "$root/dpo/train.py"} "$root/gpt/launch/check.py" "$@"
        ;;
    compare) shift && compare "$@" ;;
    online) shift && online "$@" ;;
    test) shift && run_tests "$@" ;;
    torture) shift && torture "$@" ;;
    bench) shift && bench "$@" ;;
    *) echo "error: there is no command '$1'; ./launch.sh --help lists them" >&2 && exit 2 ;;
esac
