"""The stub server of this folder can be imported by the tests of it: ``import openai_stub``."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
