/* Prints docs/recipe.md, which is made from src/base/options.def: `make docs`. */
#include "base/options.h"

int main(void)
{
    tm_buf text = {0};
    tm_recipe_document(&text);
    bool ok = !text.failed && fwrite(tm_buf_str(&text), 1, text.size, stdout) == text.size && fflush(stdout) == 0;
    tm_buf_deinit(&text);
    return ok ? 0 : 1;
}
