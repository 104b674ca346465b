"""The benchmarks: what is measured, how, and what is made of it.

``cases`` says what, ``contest`` builds the model and its peers, ``race`` checks that they agree and times them in turn,
``suite`` runs the cases and writes a result file, ``page`` renders result files, ``compare`` sets two side by side.
``medzoo bench`` and ``pytest benchmarks/`` both run these modules, and so measure the same.
"""
