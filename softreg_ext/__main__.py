"""``python -m softreg_ext`` is ``softreg``."""

import sys

from .cli import main

sys.exit(main())
