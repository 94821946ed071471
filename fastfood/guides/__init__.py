"""Runnable examples, and the pages of documentation that the README lists.

.. include:: gallery.md
.. include:: install.md
.. include:: transform.md
.. include:: subspace_model.md
.. include:: measuring.md
.. include:: language.md
.. include:: bounds.md
.. include:: clusters.md
.. include:: measured.md
.. include:: training_steps.md
.. include:: cpu.md
.. include:: cuda.md
.. include:: from_fast_hadamard_transform.md
.. include:: from_the_authors_code.md
.. include:: format_1.md
.. include:: hardening.md
"""

GUIDES = {
    "rotation": "--rows 128",
    "random_features": "--features 64,1024 --rows 500",
    "trainer": "--steps 20",
    "peft_adapters": "--steps 5 --d 100",
    "intrinsic_dimension": "--dims 30,1000 --steps 5",
    "error_bound": "--steps 30 --d 100 --qat-steps 5",
    "custom_model": "--steps 30",
}
"""The guides, each with the small setting at which CI runs it."""
