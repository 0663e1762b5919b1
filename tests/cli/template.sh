#!/bin/sh
# temper template: the text a chat template gives.
. tests/cli/lib.sh
data=tests/data/chat
for t in meta-llama-Meta-Llama-3.1-8B-Instruct google-gemma-7b-it; do
    run template --template $data/templates/$t.jinja --context $data/contexts/tool_use.json
    [ "$status" -eq 0 ] && cmp -s "$dir/out" $data/expected/$t-tool_use.txt
    result $? "$t, with tools"
done
printf '%s' '{"messages": [{"role": "user", "content": "Hi"}], "add_generation_prompt": true}' > "$dir/c.json"
run template --template chatml --context "$dir/c.json"
[ "$status" -eq 0 ] && [ "$(cat "$dir/out"; echo .)" = "$(printf '<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n.')" ]
result $? "a template of temper's by name"
run template --template $data/saiga/prompt_saiga_v2.json --context "$dir/c.json"
[ "$status" -eq 0 ] && grep -q '^<s>system$' "$dir/out" && grep -q '<s>bot$' "$dir/out"
result $? "Saiga's JSON"
expect "a template may refuse" 3 'google-gemma-7b-it.jinja:1: the template refuses: System role not supported' \
    template --template $data/templates/google-gemma-7b-it.jinja --context $data/contexts/system.json --as-is
printf '%s' '{{ strftime_now("%Y-%m-%d") }}' > "$dir/t.jinja"
expect "a day that does not change" 0 '^2024-07-26$' template --template "$dir/t.jinja" --context "$dir/c.json"
expect "another day" 0 '^2025-01-02$' template --template "$dir/t.jinja" --context "$dir/c.json" --date 2025-01-02
printf 'a\n{%% for x in %%}' > "$dir/t.jinja"
expect "a damaged template, with its line" 3 't.jinja:2: ' template --template "$dir/t.jinja" --context "$dir/c.json"
printf '{%% set r = range(99999) %%}{%% for a in r %%}{%% for b in r %%}{%% endfor %%}{%% endfor %%}' > "$dir/t.jinja"
expect "a template that never ends, ends" 3 'more than 20000000 steps' template --template "$dir/t.jinja" --context "$dir/c.json"
printf '[1]' > "$dir/bad.json"
expect "a context that is no object" 3 'bad.json: expected a JSON object' template --template chatml --context "$dir/bad.json"
expect "an unknown name" 2 'chatml, ' template --template chatmll --context "$dir/c.json"
expect "missing arguments" 2 'needed' template --template chatml
expect "help shows an example" 0 'example: ' template --help
"$temper" template --help | sed -n '/^example: /,$p' | sed 's/^example: //; s/^ *//; s|/tmp/|'"$dir"'/|g' > "$dir/example"
( temper() { "$example_of" "$@"; }; example_of=$temper; . "$dir/example" ) > "$dir/out" 2> "$dir/err"
[ $? -eq 0 ] && [ -s "$dir/out" ] && [ ! -s "$dir/err" ]
result $? "the example of --help"
exit $code
