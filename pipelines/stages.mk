# The stages after tokens, for every pipeline: each is one rule on `manifest.json`. What did not change
# is not made again, and a stage that was killed goes on where it stopped. The settings lie in SETTINGS,
# the pipeline's own folder unless it says otherwise; its Makefile includes this file after its rule for
# tokens. Where there is a dmt.toml, the RNN of rnn.toml, or that of the labels, goes on learning from
# its own rollout.
#
# SMOKE=1 runs everything in a minute, in a folder of its own, to see that it runs; it learns nothing.

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

# The RNN that is evaluated: the last of those that have settings.
LAST := $(if $(wildcard $(SETTINGS)/dmt.toml),dmt,rnn)
FIRST := $(if $(wildcard $(SETTINGS)/rnn.toml),$(ARTIFACTS)/rnn)

# Paths, as they were given where make was called.
given = $(foreach path,$(1),$(if $(filter /%,$(path)),,$(or $(CALLED_FROM),../..)/)$(path))

RUN = $(SMTKIT) $(1) --out $(@D) --overwrite --resume && touch $@

.PHONY: all sample clean

all: $(ARTIFACTS)/evaluation/manifest.json sample

$(ARTIFACTS)/encoder/manifest.json: $(TOKENS)/manifest.json $(SETTINGS)/encoder.toml
	$(call RUN,train-encoder $(<D) --config $(SETTINGS)/encoder.toml $(ENCODER_FLAGS))

$(ARTIFACTS)/labels/manifest.json: $(ARTIFACTS)/encoder/manifest.json $(TOKENS)/manifest.json $(SETTINGS)/labels.toml
	$(call RUN,extract-labels $(<D) --tokens $(TOKENS) --config $(SETTINGS)/labels.toml $(LABELS_FLAGS))

$(ARTIFACTS)/rnn/manifest.json: $(ARTIFACTS)/labels/manifest.json $(SETTINGS)/rnn.toml
	$(call RUN,train-rnn $(<D) --config $(SETTINGS)/rnn.toml $(RNN_FLAGS))

$(ARTIFACTS)/dmt/manifest.json: $(ARTIFACTS)/labels/manifest.json $(FIRST:%=%/manifest.json) $(SETTINGS)/dmt.toml
	$(call RUN,train-rnn $(<D) --method dmt $(FIRST:%=--init %) --config $(SETTINGS)/dmt.toml $(DMT_FLAGS))

$(ARTIFACTS)/evaluation/manifest.json: $(ARTIFACTS)/$(LAST)/manifest.json $(ARTIFACTS)/encoder/manifest.json
	$(call RUN,eval $(<D) --tokens $(TOKENS) --encoder $(ARTIFACTS)/encoder $(EVAL_FLAGS))

clean:
	rm -rf artifacts artifacts-smoke
