"""The benchmark suite: models and their parts timed beside MONAI, timm and eager PyTorch. It is not in the wheel.

``python -m benchmarks`` runs cases, compares result files and renders the page; ``pytest benchmarks/`` runs the same
cases in pytest-benchmark. A case becomes a row in four steps: ``cases`` lists what is measured, ``build`` makes the
model, its peers (``peers``) and the inputs, ``timing`` checks that the outputs agree and measures time and memory, and
``suite`` collects the rows into a result file. ``results``, ``targets``, ``plots`` and ``page`` read result files.
"""
