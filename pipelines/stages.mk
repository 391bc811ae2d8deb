# The stages after `tokenize`, shared by all pipelines. Each stage is one rule of one command, whose target
# is the `manifest.json` of its artifact: it runs when its inputs have changed, and `--update` keeps what is
# up to date and resumes what was interrupted.
#
# A pipeline's Makefile sets its variables, includes this file, and adds the rules for $(TOKENS) and
# `sample`. Settings are read from SETTINGS, by default the pipeline's own folder:
#
#   tokenize.toml   encoder.toml   labels.toml
#   rnn.toml        one-step training of the RNN (optional)
#   dmt.toml        training on the RNN's own rollouts, from the RNN of rnn.toml if there is one (optional)
#
# SMOKE=1 runs all stages for a few steps within a minute, in `artifacts-smoke`, to check that they work.

ifdef SMOKE
ENCODER_FLAGS ?= --max-steps 20
LABELS_FLAGS ?= --max-windows 200
RNN_FLAGS ?= --max-steps 20
DMT_FLAGS ?= --max-steps 5
EVAL_FLAGS ?= --windows 32
endif

SMTKIT ?= smtkit
PYTHON ?= python3
ROOT ?= $(if $(SMOKE),artifacts-smoke,artifacts)
ARTIFACTS ?= $(ROOT)
TOKENS ?= $(ARTIFACTS)/tokens
SETTINGS ?= .

# The RNN that is evaluated: `dmt` if it has settings, else `rnn`.
LAST := $(if $(wildcard $(SETTINGS)/dmt.toml),dmt,rnn)
FIRST := $(if $(wildcard $(SETTINGS)/rnn.toml),$(ARTIFACTS)/rnn)

# Paths given by the user: absolute, relative to this folder, or to the folder where make was called.
given = $(foreach path,$(1),$(or $(wildcard $(path)),$(if $(filter /%,$(path)),,$(PWD)/)$(path)))

.PHONY: all sample clean

all: $(ARTIFACTS)/evaluation/manifest.json sample

$(ARTIFACTS)/encoder/manifest.json: $(TOKENS)/manifest.json $(SETTINGS)/encoder.toml
	$(SMTKIT) train-encoder $(<D) --config $(SETTINGS)/encoder.toml $(ENCODER_FLAGS) --out $(@D) --update

$(ARTIFACTS)/labels/manifest.json: $(ARTIFACTS)/encoder/manifest.json $(TOKENS)/manifest.json $(SETTINGS)/labels.toml
	$(SMTKIT) extract-labels $(<D) --tokens $(TOKENS) --config $(SETTINGS)/labels.toml $(LABELS_FLAGS) --out $(@D) --update

$(ARTIFACTS)/rnn/manifest.json: $(ARTIFACTS)/labels/manifest.json $(SETTINGS)/rnn.toml
	$(SMTKIT) train-rnn $(<D) --config $(SETTINGS)/rnn.toml $(RNN_FLAGS) --out $(@D) --update

$(ARTIFACTS)/dmt/manifest.json: $(ARTIFACTS)/labels/manifest.json $(FIRST:%=%/manifest.json) $(SETTINGS)/dmt.toml
	$(SMTKIT) train-rnn $(<D) --method dmt $(FIRST:%=--init %) --config $(SETTINGS)/dmt.toml $(DMT_FLAGS) --out $(@D) --update

$(ARTIFACTS)/evaluation/manifest.json: $(ARTIFACTS)/$(LAST)/manifest.json $(ARTIFACTS)/encoder/manifest.json
	$(SMTKIT) eval $(<D) --tokens $(TOKENS) --encoder $(ARTIFACTS)/encoder $(EVAL_FLAGS) --out $(@D) --update

clean:
	rm -rf artifacts artifacts-smoke
