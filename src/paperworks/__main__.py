"""`python -m paperworks`, and what `torchrun -m paperworks run ...` starts."""

import sys

from paperworks.cli import main

sys.exit(main())
