"""Draws docs/demo.png, the first screen of the report that `make demo` leaves in out/demo.

python tools/picture.py [report.html]
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parent.parent
WIDTH, HEIGHT = 1160, 1580  # of the window, pixels
NUM_COLOURS = 48


def main(report: str = "out/demo/report.html") -> None:
    """Takes the picture with Chromium, which must be on PATH, and makes it small."""
    picture = ROOT / "docs" / "demo.png"
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                f"--user-data-dir={profile}", f"--window-size={WIDTH},{HEIGHT}",
                f"--screenshot={picture}", Path(report).resolve().as_uri(),
            ],
            check=True,
        )  # fmt: skip
    Image.open(picture).convert("RGB").quantize(NUM_COLOURS).save(picture, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
