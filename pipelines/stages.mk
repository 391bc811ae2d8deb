# The stages after tokens, for every pipeline: each is one rule on `manifest.json`. What did not change
# is not made again, and a stage that was killed goes on where it stopped. The settings lie beside the
# pipeline's own Makefile, which includes this file after its rule for tokens.
#
# SMOKE=1 runs everything in a minute, in a folder of its own, to see that it runs; it learns nothing.

ifdef SMOKE
ARTIFACTS ?= artifacts-smoke
ENCODER_FLAGS += --max-steps 20
LABELS_FLAGS += --max-windows 200
RNN_FLAGS += --max-steps 20
EVAL_FLAGS += --windows 32
endif

SMTKIT ?= smtkit
PYTHON ?= python3
ARTIFACTS ?= artifacts

RUN = $(SMTKIT) $(1) --out $(@D) --overwrite --resume && touch $@

.PHONY: all sample clean

all: $(ARTIFACTS)/evaluation/manifest.json sample

$(ARTIFACTS)/encoder/manifest.json: $(ARTIFACTS)/tokens/manifest.json encoder.toml
	$(call RUN,train-encoder $(<D) --config encoder.toml $(ENCODER_FLAGS))

$(ARTIFACTS)/labels/manifest.json: $(ARTIFACTS)/encoder/manifest.json $(ARTIFACTS)/tokens/manifest.json labels.toml
	$(call RUN,extract-labels $(<D) --tokens $(ARTIFACTS)/tokens --config labels.toml $(LABELS_FLAGS))

$(ARTIFACTS)/rnn/manifest.json: $(ARTIFACTS)/labels/manifest.json rnn.toml
	$(call RUN,train-rnn $(<D) --config rnn.toml $(RNN_FLAGS))

$(ARTIFACTS)/evaluation/manifest.json: $(ARTIFACTS)/rnn/manifest.json $(ARTIFACTS)/encoder/manifest.json
	$(call RUN,eval $(<D) --tokens $(ARTIFACTS)/tokens --encoder $(ARTIFACTS)/encoder $(EVAL_FLAGS))

clean:
	rm -rf artifacts artifacts-smoke
