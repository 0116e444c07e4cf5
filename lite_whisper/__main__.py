"""`python -m lite_whisper`, the same as the console script `lite-whisper`."""

import sys

from lite_whisper_commands import main

sys.exit(main())
