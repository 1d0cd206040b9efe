# `make run` trains a model on real sentences and shows what it writes; `make test` checks everything; `make help` lists the rest.
# Needs Python 3.11 or later and make. Everything is installed into .venv; nothing has to be activated.
PYTHON ?= python3
# an index with another build of PyTorch, for instance one without CUDA; pip looks there besides its own
TORCH_INDEX ?=

TASK ?= basic-english
RECIPE ?= fast
PROFILE ?= cpu
MINUTES ?= $(if $(filter smoke,$(PROFILE)),0.2,10)
DATA_DIR ?=
# a trained model to begin from: a folder, the name of one that comes with the package, or a hub id
START ?=
# pre-trained weights that a new model begins with, a folder or a hub id: a BERT for fast and paper (all-MiniLM-L6-v2 is
# installed), a causal language model for gpt2 (gpt2-large), a T5 for gpvae-t5
ENCODER ?=
N_EVAL ?= 300
# texts for each source when a run is evaluated; 1: no choice among them, no diversity
CANDIDATES ?= 5
PROCESSES ?= 1
# recipes that `make reproduce` compares, as `fast, gru, levt`; none: all of them
MODELS ?=
# of its runs, as `0, 1`
SEEDS ?= 0
# where the runs of `make reproduce` are kept, and where its records and pictures go
RUNS ?= runs/compare$(if $(filter-out cpu,$(PROFILE)),-$(PROFILE))
INTO ?= $(if $(filter smoke,$(PROFILE)),runs/reproduce-$(notdir $(TASK))/figures,figures)
NAME ?= $(notdir $(TASK))$(if $(filter-out fast,$(RECIPE)),-$(RECIPE))$(if $(filter-out cpu,$(PROFILE)),-$(PROFILE))

SENTENCES = 'Your men shall fall by the sword, and your mighty in the war.' 'The blind and the lame came to him in the temple, and he healed them.' \
	'He sends forth springs into the valleys. They run among the mountains.'
RUN = runs/$(NAME)
FILES = $(if $(DATA_DIR),-r data_dir "$(DATA_DIR)")
BEGIN = $(if $(START),-r start "$(START)") $(if $(ENCODER),-r encoder "$(ENCODER)")
PY = .venv/bin/python
STAMP = .venv/installed
# a kernel serves this machine alone: it need not warn that what it says is not encrypted
KERNEL = '{"IPKernelApp": {"log_level": "ERROR"}}'
PAPERMILL = $(PY) -m papermill -k python3 --cwd . --no-progress-bar --log-level WARNING --stdout-file - --stderr-file -
# with several processes each keeps its own executed notebook; the first one's is train.ipynb
TRAIN = $(PAPERMILL) nbs/experiments/train.ipynb "$(RUN)/train$$(test $${RANK:-0} = 0 || echo .$$RANK).ipynb" \
	-r task "$(TASK)" -r recipe "$(RECIPE)" -r profile "$(PROFILE)" -r run_dir "$(RUN)" $(FILES) $(BEGIN) -p minutes $(MINUTES)
# settings of `make reproduce`, as YAML
REPRODUCE = {task: "$(TASK)", profile: $(PROFILE), minutes: $(MINUTES), seeds: [$(SEEDS)], runs: "$(RUNS)", into: "$(INTO)", \
	models: $(if $(MODELS),[$(MODELS)],null), data_dir: $(if $(DATA_DIR),"$(DATA_DIR)",null), \
	n_eval: $(call asked,N_EVAL), candidates: $(call asked,CANDIDATES)}
# a variable that somebody set; otherwise each notebook has its own
asked = $(if $(filter file,$(origin $1)),null,$($1))
LAUNCH = $(PY) -m accelerate.commands.launch --multi_gpu --num_machines 1 --mixed_precision no --dynamo_backend no

.PHONY: help run demo test train evaluate reproduce notebook docs clean
.DEFAULT_GOAL := help
.NOTPARALLEL:

help:
	@echo 'make run [MINUTES=10]     set up, train on basic-english, evaluate, show a table and ten sentences'
	@echo 'make test                 set up, check that exports and notebooks are current, run every notebook and test'
	@echo 'make train [TASK= PROFILE= RECIPE= NAME= MINUTES= PROCESSES= DATA_DIR= START= ENCODER=]   train into runs/NAME; again: resume or extend'
	@echo 'make evaluate [NAME= N_EVAL=]   measure runs/NAME on held-out pairs'
	@echo 'make reproduce [TASK= PROFILE= MINUTES= MODELS= SEEDS= RUNS= DATA_DIR=]   compare the models, make the tables and figures of the paper, report'
	@echo 'make notebook             open JupyterLab'
	@echo 'make docs                 render the site into _docs/html'
	@echo 'make clean                remove what was rendered and built; runs, data and .venv stay'
	@echo 'Anywhere: TORCH_INDEX=ADDRESS adds a package index for another build of PyTorch'

$(STAMP): settings.ini setup.py constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "Python 3.11 or later is needed, this one is %d.%d; name another with PYTHON=" % v[:2])'
	test -x $(PY) || $(PYTHON) -m venv .venv
	@echo 'Installing into .venv: a few minutes, once'
	@$(PY) -m pip install -q --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url "$(TORCH_INDEX)") -c constraints.txt -e '.[dev]'
	@mkdir -p .venv/etc/ipython
	@echo $(KERNEL) > .venv/etc/ipython/ipython_kernel_config.json
	@touch $(STAMP)

run: demo train evaluate
	@$(PY) -m diffuseq.cli show "$(RUN)" --triples 10 --trace "$(RUN)/trace.html"

demo: $(STAMP)
	@echo 'Three sentences that the model of the package never saw, and what it makes of them:'
	@printf '%s\n' $(SENTENCES)
	@printf '%s\n' $(SENTENCES) | $(PY) -m diffuseq.cli generate --model basic-english --order left-to-right --beam 5
	@echo 'Now one is trained from nothing.'

train: $(STAMP)
	@mkdir -p "$(RUN)"
ifeq ($(PROCESSES),1)
	$(TRAIN)
else
	export ACCELERATE_USE_CPU=$$($(PY) -c 'import torch; print(int(not torch.cuda.is_available()))'); \
	$(LAUNCH) --num_processes $(PROCESSES) --no_python sh -c '$(TRAIN)'
endif

evaluate: $(STAMP)
	$(PAPERMILL) nbs/experiments/evaluate.ipynb "$(RUN)/evaluate.ipynb" -r run_dir "$(RUN)" $(FILES) -p n_eval $(N_EVAL) -p candidates $(CANDIDATES)

# with one thread, as in the records; a notebook that fails is passed by, and the exit status says so
reproduce: $(STAMP)
	@OMP_NUM_THREADS=1 $(PY) -c 'import sys, yaml; from diffuseq.runs import reproduce; sys.exit(len(reproduce(**yaml.safe_load(sys.argv[1]))))' '$(REPRODUCE)'

test: $(STAMP)
	@$(PY) .ci/check.py

notebook: $(STAMP)
	$(PY) -m jupyterlab nbs/index.ipynb

docs: $(STAMP)
	$(PY) docs/pages.py
	@echo "_docs/html/index.html"

clean:
	rm -rf _docs _proc build dist diffuseq.egg-info .pytest_cache
	find diffuseq nbs docs tests -name __pycache__ -o -name .ipynb_checkpoints | while read -r d; do rm -rf "$$d"; done
