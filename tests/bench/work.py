"""What the benchmark does in processes of their own, so that nobody's memory is somebody else's.

python tests/bench/work.py measure --system ours --init FOLDER --pairs FILE --out FOLDER --steps 2 --batch 8 --lr 1e-5
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gpt.command import run
from tests.bench.judge import Judge, judge
from tests.bench.prepare import Prepare, Rate, prepare, rate
from tests.bench.systems import Work, measure

if __name__ == "__main__":
    run({"prepare": (prepare, Prepare), "rate": (rate, Rate), "measure": (measure, Work), "judge": (judge, Judge)})
