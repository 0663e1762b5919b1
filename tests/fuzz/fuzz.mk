# libFuzzer targets: every tests/fuzz/fuzz_NAME.c is one, its seeds are in tests/fuzz/corpus/NAME/.
#   make fuzz FUZZ_SECONDS=600          each that long; new inputs go to build/fuzz/corpus/NAME/
#   make fuzz FUZZ_TARGETS=safetensors  only that
#   make fuzzkeep                       adds what new inputs reach beyond the seeds to the seeds
# They see the parts that read files: base, io and text.

FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?= $(patsubst tests/fuzz/fuzz_%.c,%,$(wildcard tests/fuzz/fuzz_*.c))
FUZZ_CC      ?= clang
FUZZ_FLAGS   := -std=gnu17 -O1 -g -fno-omit-frame-pointer -fno-sanitize-recover=undefined -pthread -MMD -MP
FUZZ_OBJECTS := $(patsubst %.c,build/fuzz/%.o,$(wildcard src/base/*.c src/io/*.c src/text/*.c))
FUZZ_RUN     := -timeout=10 -rss_limit_mb=2048 -max_len=20000 -artifact_prefix=build/fuzz/

.PHONY: fuzz fuzzkeep
fuzz: $(FUZZ_TARGETS:%=build/fuzz/fuzz_%) ## libFuzzer on everything that reads files (FUZZ_SECONDS each)
	@for t in $(FUZZ_TARGETS); do \
	    echo "fuzz $$t: $(FUZZ_SECONDS) s"; mkdir -p build/fuzz/corpus/$$t tests/fuzz/corpus/$$t; \
	    build/fuzz/fuzz_$$t $(FUZZ_RUN) -max_total_time=$(FUZZ_SECONDS) -print_final_stats=1 -verbosity=0 \
	        build/fuzz/corpus/$$t tests/fuzz/corpus/$$t || exit 1; \
	done

fuzzkeep: $(FUZZ_TARGETS:%=build/fuzz/fuzz_%)
	@for t in $(FUZZ_TARGETS); do \
	    build/fuzz/fuzz_$$t $(FUZZ_RUN) -set_cover_merge=1 tests/fuzz/corpus/$$t build/fuzz/corpus/$$t || exit 1; \
	done

build/fuzz/%.o: %.c
	@mkdir -p $(@D)
	$(FUZZ_CC) $(CPPFLAGS) $(FUZZ_FLAGS) -fsanitize=fuzzer-no-link,address,undefined -c -o $@ $<

build/fuzz/libtemper.a: $(FUZZ_OBJECTS)
	@rm -f $@
	$(AR) rcs $@ $^

build/fuzz/fuzz_%: build/fuzz/tests/fuzz/fuzz_%.o build/fuzz/libtemper.a
	$(FUZZ_CC) -fsanitize=fuzzer,address,undefined -o $@ $^ $(LDLIBS)

# Objects here know their headers too.
-include $(shell find build/fuzz -name "*.d" 2>/dev/null)
