"""``python -m triptych``, and ``torchrun -m triptych`` on several devices."""

from triptych.cli import main

main()
