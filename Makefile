# Short verbs for dev.py, which does the work and needs no make.
# Arguments go through ARGS: make bench ARGS=--quick
PYTHON ?= python3

VERBS = bench test quick lint type asan docs build clean

.PHONY: $(VERBS)
$(VERBS):
	$(PYTHON) dev.py $@ $(ARGS)
