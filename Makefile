# `make demo` and `make test` each set up everything a fresh machine needs.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
RUN = demo/run
TEST_PROCESSES ?= 2
export OMP_NUM_THREADS ?= 2

.PHONY: demo test check bench bench-footage evidence gpu-check gpu-check-wheels clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable ".[demo,test,check,cloud-test]"
	touch $@

demo: $(VENV)/.installed  ## rendered scenes and real footage -> trained model -> report page
	$(BIN)/python -m jobs.demo_videos demo/videos
	$(BIN)/recaption run --videos demo/videos --out $(RUN) --recipe quickstart
	$(BIN)/recaption verify --run $(RUN)
	@echo "sampled video: $$(ls -d $(RUN)/samples/*/sample-0000.mp4 | tail -n 1)"
	@echo "report page:   $(RUN)/report/index.html"

test: export OMP_NUM_THREADS = 1
test: $(VENV)/.installed  ## processes of one thread each; the tests of a file stay together, for their fixtures
	$(BIN)/python -m pytest -q -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.installed
	for bench in train/bench_attention recaption/bench_generate packing/bench_plan recaption/bench_shots \
		jobs/bench_verify jobs/bench_flat jobs/bench_ray; do \
		echo "== $$bench"; $(BIN)/python tests/benchmarks/$$bench.py || exit 1; done

gpu-check:  ## the GPU paths on this machine's GPU, as one table; needs no installation of this project (docs/gpu_check.md)
	$(PYTHON) tests/gpu_check/run.py $(ARGS)

gpu-check-wheels:  ## packages that the GPU machine may lack, as wheels that travel with the checkout
	$(PYTHON) tests/gpu_check/carried.py

bench-footage: $(VENV)/.installed  ## what needs real videos: make bench-footage VIDEOS=folder
	for bench in "recaption/bench_frame_accuracy $(VIDEOS)" "recaption/bench_mutations $(VIDEOS)" \
		"recaption/bench_isolation $(VIDEOS)" "recaption/bench_scores $(VIDEOS)" \
		"recaption/bench_duplicates copies $(VIDEOS)" "jobs/bench_end_to_end --videos $(VIDEOS)"; do set -- $$bench; name=$$1; shift; \
		echo "== $$name"; $(BIN)/python tests/benchmarks/$$name.py "$$@" || exit 1; done

evidence: export OMP_NUM_THREADS = 1
evidence: $(VENV)/.installed  ## a claim tested by training both sides (hours; resumes): make evidence NAME=backbones (docs/evidence.md)
	$(BIN)/python -m tests.evidence $(NAME) $(ARGS)

clean:
	rm -rf demo .pytest_cache .ruff_cache .mypy_cache build *.egg-info
