/* Text of a template to tokens, as jinja2 with trim_blocks and lstrip_blocks cuts it: white space around
 * tags is decided here, the parser never sees it. Invariant: pos only grows; what is before it was given. */
#include "text/jinja_parts.h"

#include <locale.h>
#include <stdlib.h>

enum { IN_TEXT, IN_BLOCK, IN_VARIABLE };

bool jj_space(uint32_t c)
{
    return (c >= 9 && c <= 13) || (c >= 28 && c <= 32) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

tm_status jj_syntax(const tm_jinja *t, int line, tm_error *err, const char *fmt, ...)
{
    char what[400];
    va_list args;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    return tm_fail(err, TM_INPUT, "%s:%d: %s", t->name, line, what);
}

static tm_status no_memory(const jj_lexer *l) { return tm_fail(l->err, TM_NO_MEMORY, "%s: out of memory", l->t->name); }

/* Takes the source with every line end as \n; one at the very end goes, as jinja2 has it. */
tm_status jj_lexer_init(jj_lexer *l, tm_jinja *t, const char *text, size_t size, tm_error *err)
{
    *l = (jj_lexer){.t = t, .line = 1, .err = err};
    char *source = jj_pool_take(&t->pool, size + 1);
    if (!source)
        return no_memory(l);
    for (size_t i = 0; i < size; i++) {
        bool cr = text[i] == '\r';
        source[l->size++] = cr ? '\n' : text[i];
        if (cr && i + 1 < size && text[i + 1] == '\n')
            i++;
    }
    if (l->size && source[l->size - 1] == '\n')
        l->size--;
    l->source = source;
    return TM_OK;
}

static bool looking_at(const jj_lexer *l, size_t at, const char *text)
{
    size_t n = strlen(text);
    return at <= l->size && l->size - at >= n && memcmp(l->source + at, text, n) == 0;
}

static size_t skip_space(const jj_lexer *l, size_t at)
{
    size_t n;
    while (at < l->size && jj_space(tm_utf8_at(l->source + at, &n)))
        at += n;
    return at;
}

/* Where text [begin, end) ends without white space behind it. */
static size_t strip_end(const jj_lexer *l, size_t begin, size_t end)
{
    size_t n;
    while (end > begin && jj_space(tm_utf8_before(l->source, end, &n)))
        end -= n;
    return end;
}

static void move(jj_lexer *l, size_t to)
{
    for (; l->pos < to; l->pos++)
        l->line += l->source[l->pos] == '\n';
}

/* The end of text [begin, end) before a tag with this sign: '-' takes all white space, a block or comment
 * that begins its line takes what stands before it there. */
static size_t trim_before(const jj_lexer *l, size_t begin, size_t end, char sign, bool variable)
{
    if (sign == '-')
        return strip_end(l, begin, end);
    if (sign == '+' || variable)
        return end;
    size_t line = end;
    while (line > begin && l->source[line - 1] != '\n')
        line--;
    bool line_begins = line > begin || begin == 0 || l->source[begin - 1] == '\n';
    return line_begins && strip_end(l, line, end) == line ? line : end;
}

/* Whether a tag ends at `at` with close ("%}" or "#}"), and where the text behind it begins; else 0. */
static size_t tag_end(const jj_lexer *l, size_t at, const char *close, bool plus, bool newline)
{
    if (looking_at(l, at, close))
        return at + 2 + (newline && looking_at(l, at + 2, "\n"));
    if (looking_at(l, at + 1, close) && l->source[at] == '-')
        return skip_space(l, at + 3);
    return plus && looking_at(l, at + 1, close) && l->source[at] == '+' ? at + 3 : 0;
}

static char sign_at(const jj_lexer *l, size_t at)
{
    return at < l->size && (l->source[at] == '-' || l->source[at] == '+') ? l->source[at] : 0;
}

/* "raw" behind a block's beginning: where the raw text begins; 0: something else. */
static size_t raw_begin(const jj_lexer *l, size_t at)
{
    at = skip_space(l, at);
    return looking_at(l, at, "raw") ? tag_end(l, skip_space(l, at + 3), "%}", false, false) : 0;
}

static void data_token(const jj_lexer *l, jj_token *token, size_t begin, size_t end)
{
    *token = (jj_token){.kind = JJ_T_DATA, .line = l->line, .text = l->source + begin, .size = end - begin};
}

/* Raw text from pos on, as a data token (perhaps empty). */
static tm_status raw_text(jj_lexer *l, jj_token *token)
{
    for (size_t i = l->pos; i < l->size; i++) {
        if (!looking_at(l, i, "{%"))
            continue;
        char sign = sign_at(l, i + 2);
        size_t at = skip_space(l, i + 2 + (sign != 0)), end;
        if (!looking_at(l, at, "endraw") || !(end = tag_end(l, skip_space(l, at + 6), "%}", true, true)))
            continue;
        data_token(l, token, l->pos, trim_before(l, l->pos, i, sign, false));
        move(l, end);
        return TM_OK;
    }
    return jj_syntax(l->t, l->line, l->err, "a raw block is not closed, expected {%% endraw %%}");
}

static tm_status skip_comment(jj_lexer *l)
{
    for (size_t i = l->pos; i + 1 < l->size; i++) {
        if (!looking_at(l, i, "#}"))
            continue;
        char before = i > l->pos ? l->source[i - 1] : 0;
        move(l, before == '-' ? skip_space(l, i + 2) : i + 2 + (before != '+' && looking_at(l, i + 2, "\n")));
        return TM_OK;
    }
    return jj_syntax(l->t, l->line, l->err, "a comment is not closed, expected #}");
}

/* Text up to the next tag, or that tag's beginning. */
static tm_status next_in_text(jj_lexer *l, jj_token *token)
{
    while (l->pos < l->size) {
        size_t i = l->pos;
        while (i < l->size && !(l->source[i] == '{' && i + 1 < l->size && strchr("%{#", l->source[i + 1]) &&
                                l->source[i + 1]))
            i++;
        if (i == l->size) {
            data_token(l, token, l->pos, i);
            move(l, i);
            return TM_OK;
        }
        char kind = l->source[i + 1], sign = sign_at(l, i + 2);
        size_t end = trim_before(l, l->pos, i, sign, kind == '{'), inside = i + 2 + (sign != 0);
        if (end > l->pos) { /* the tag itself next time: what is left before it is white space that goes */
            data_token(l, token, l->pos, end);
            move(l, i);
            return TM_OK;
        }
        move(l, i);
        if (kind == '#') {
            move(l, inside);
            TM_TRY(skip_comment(l));
            continue;
        }
        size_t raw = kind == '%' ? raw_begin(l, inside) : 0;
        if (raw) {
            move(l, raw);
            TM_TRY(raw_text(l, token));
            if (token->size)
                return TM_OK;
            continue;
        }
        move(l, inside);
        l->state = kind == '%' ? IN_BLOCK : IN_VARIABLE;
        *token = (jj_token){.kind = kind == '%' ? JJ_T_BLOCK_BEGIN : JJ_T_VARIABLE_BEGIN, .line = l->line};
        return TM_OK;
    }
    *token = (jj_token){.kind = JJ_T_EOF, .line = l->line};
    return TM_OK;
}

/* ---- inside a tag ---- */

static bool digit(char c) { return c >= '0' && c <= '9'; }
static bool name_char(char c)
{
    return digit(c) || c == '_' || ((c | 32) >= 'a' && (c | 32) <= 'z') || (unsigned char)c >= 0x80;
}

static int digit_of(char c)
{
    if (digit(c))
        return c - '0';
    c |= 32;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : 99;
}

/* Digits with single underscores between them, from `at` on: the end. */
static size_t digits(const jj_lexer *l, size_t at, int base)
{
    size_t end = at;
    while (at < l->size && digit_of(l->source[at]) < base) {
        end = ++at;
        if (at < l->size && l->source[at] == '_')
            at++;
    }
    return end;
}

static tm_status number(jj_lexer *l, jj_token *token)
{
    const char *s = l->source;
    size_t at = l->pos, end = digits(l, at, 10), real = 0;
    bool after_dot = at > 0 && s[at - 1] == '.';
    if (!after_dot) {
        size_t fraction = end < l->size && s[end] == '.' ? digits(l, end + 1, 10) : end;
        bool has_fraction = fraction > end + 1, exponent = false;
        size_t e = has_fraction ? fraction : end;
        if (e < l->size && (s[e] | 32) == 'e') {
            size_t d = e + 1 + (sign_at(l, e + 1) != 0), stop = digits(l, d, 10);
            exponent = stop > d;
            real = exponent ? stop : 0;
        }
        if (!exponent && has_fraction)
            real = fraction;
    }
    int base = 10;
    if (!real && s[at] == '0') {
        char x = at + 1 < l->size ? (char)(s[at + 1] | 32) : 0;
        base = x == 'x' ? 16 : x == 'o' ? 8 : x == 'b' ? 2 : 10;
        size_t from = at + 2 + (at + 2 < l->size && s[at + 2] == '_'), stop = base == 10 ? 0 : digits(l, from, base);
        if (base != 10 && stop > from)
            end = stop;
        else /* zeros alone: 0, 00 */
            for (base = 10, end = at + 1; end < l->size && (s[end] == '0' || (s[end] == '_' && looking_at(l, end + 1, "0")));)
                end++;
    }
    char text[400];
    size_t n = 0;
    for (size_t i = at; i < (real ? real : end); i++)
        if (s[i] != '_' && n < sizeof text)
            text[n++] = s[i];
    if (n == sizeof text)
        return jj_syntax(l->t, l->line, l->err, "a number of more than %zu digits", sizeof text - 1);
    text[n] = 0;
    *token = (jj_token){.kind = real ? JJ_T_FLOAT : JJ_T_INT, .line = l->line};
    if (real) {
        locale_t c = newlocale(LC_ALL_MASK, "C", NULL);
        if (!c)
            return no_memory(l);
        token->f = strtod_l(text, NULL, c);
        freelocale(c);
    } else {
        for (size_t i = base == 10 ? 0 : 2; i < n; i++)
            if (__builtin_mul_overflow(token->i, base, &token->i) ||
                __builtin_add_overflow(token->i, digit_of(text[i]), &token->i))
                return jj_syntax(l->t, l->line, l->err, "%.40s: an integer beyond 64 bits", text);
    }
    move(l, real ? real : end);
    return TM_OK;
}

/* A code point of `count` hex digits at *at. */
static tm_status hex_escape(jj_lexer *l, size_t *at, size_t end, int count, char *out, size_t *size)
{
    uint32_t code = 0;
    for (int i = 0; i < count; i++) {
        if (*at >= end || digit_of(l->source[*at]) >= 16)
            return jj_syntax(l->t, l->line, l->err, "an escape in a string is cut short");
        code = code << 4 | (uint32_t)digit_of(l->source[(*at)++]);
    }
    if (code > TM_UNICODE_MAX || (code >= 0xd800 && code < 0xe000))
        return jj_syntax(l->t, l->line, l->err, "an escape in a string is no character");
    *size += (size_t)tm_utf8_put(code, out + *size);
    return TM_OK;
}

/* After the backslash at *at; out has room, since no escape is shorter than what it stands for. */
static tm_status escape(jj_lexer *l, size_t *at, size_t end, char *out, size_t *size)
{
    static const char from[] = "\\'\"abfnrtv", to[] = "\\'\"\a\b\f\n\r\t\v";
    char c = l->source[(*at)++];
    const char *known = c ? strchr(from, c) : NULL;
    if (c == '\n')
        return TM_OK;
    if (known) {
        out[(*size)++] = to[known - from];
        return TM_OK;
    }
    if (c == 'x' || c == 'u' || c == 'U')
        return hex_escape(l, at, end, c == 'x' ? 2 : c == 'u' ? 4 : 8, out, size);
    if (c == 'N')
        return jj_syntax(l->t, l->line, l->err, "\\N{...} in a string is not supported, write \\u....");
    if (c >= '0' && c <= '7') {
        uint32_t code = (uint32_t)(c - '0');
        for (int i = 0; i < 2 && *at < end && l->source[*at] >= '0' && l->source[*at] <= '7'; i++)
            code = code << 3 | (uint32_t)(l->source[(*at)++] - '0');
        *size += (size_t)tm_utf8_put(code, out + *size);
        return TM_OK;
    }
    out[(*size)++] = '\\';
    out[(*size)++] = c;
    return TM_OK;
}

static tm_status string(jj_lexer *l, jj_token *token)
{
    char quote = l->source[l->pos];
    size_t end = l->pos + 1;
    while (end < l->size && l->source[end] != quote)
        end += l->source[end] == '\\' ? 2 : 1;
    if (end >= l->size)
        return jj_syntax(l->t, l->line, l->err, "a string is not closed");
    char *out = jj_pool_take(&l->t->pool, end - l->pos + 4);
    if (!out)
        return no_memory(l);
    size_t size = 0;
    for (size_t at = l->pos + 1; at < end;) {
        char c = l->source[at++];
        if (c == '\\')
            TM_TRY(escape(l, &at, end, out, &size));
        else
            out[size++] = c;
    }
    *token = (jj_token){.kind = JJ_T_STRING, .line = l->line, .text = out, .size = size};
    move(l, end + 1);
    return TM_OK;
}

static tm_status operator_token(jj_lexer *l, jj_token *token)
{
    static const struct {
        char text[3];
        jj_token_kind kind;
    } rows[] = {{"//", JJ_T_FLOORDIV}, {"**", JJ_T_POW}, {"==", JJ_T_EQ}, {"!=", JJ_T_NE}, {">=", JJ_T_GE},
                {"<=", JJ_T_LE}, {"+", JJ_T_ADD}, {"-", JJ_T_SUB}, {"*", JJ_T_MUL}, {"/", JJ_T_DIV},
                {"%", JJ_T_MOD}, {"~", JJ_T_TILDE}, {">", JJ_T_GT}, {"<", JJ_T_LT}, {"=", JJ_T_ASSIGN},
                {".", JJ_T_DOT}, {":", JJ_T_COLON}, {"|", JJ_T_PIPE}, {",", JJ_T_COMMA}, {";", JJ_T_SEMICOLON},
                {"(", JJ_T_LPAREN}, {")", JJ_T_RPAREN}, {"[", JJ_T_LBRACKET}, {"]", JJ_T_RBRACKET},
                {"{", JJ_T_LBRACE}, {"}", JJ_T_RBRACE}};
    char c = l->source[l->pos];
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        if (!looking_at(l, l->pos, rows[i].text))
            continue;
        if (strchr("([{", c)) {
            if (l->open == TM_JINJA_MAX_NESTING)
                return jj_syntax(l->t, l->line, l->err, "brackets nest more than %d deep", TM_JINJA_MAX_NESTING);
            l->stack[l->open++] = c == '(' ? ')' : c == '[' ? ']' : '}';
        } else if (strchr(")]}", c) && (!l->open || l->stack[--l->open] != c)) {
            return jj_syntax(l->t, l->line, l->err, "found '%c' where no such bracket is open", c);
        }
        *token = (jj_token){.kind = rows[i].kind, .line = l->line};
        move(l, l->pos + strlen(rows[i].text));
        return TM_OK;
    }
    if (c > 32 && c < 127)
        return jj_syntax(l->t, l->line, l->err, "found the character '%c', expected an expression", c);
    return jj_syntax(l->t, l->line, l->err, "found the byte 0x%02x, expected an expression", (unsigned char)c);
}

static tm_status next_in_tag(jj_lexer *l, jj_token *token)
{
    for (;;) {
        if (!l->open) {
            size_t end = l->state == IN_BLOCK ? tag_end(l, l->pos, "%}", true, true) : tag_end(l, l->pos, "}}", false, false);
            if (end) {
                *token = (jj_token){.kind = l->state == IN_BLOCK ? JJ_T_BLOCK_END : JJ_T_VARIABLE_END, .line = l->line};
                l->state = IN_TEXT;
                move(l, end);
                return TM_OK;
            }
        }
        size_t at = skip_space(l, l->pos);
        if (at == l->pos)
            break;
        move(l, at);
    }
    if (l->pos == l->size) {
        *token = (jj_token){.kind = JJ_T_EOF, .line = l->line};
        return TM_OK;
    }
    char c = l->source[l->pos];
    if (digit(c))
        return number(l, token);
    if (c == '\'' || c == '"')
        return string(l, token);
    if (!name_char(c))
        return operator_token(l, token);
    size_t end = l->pos;
    while (end < l->size && name_char(l->source[end]))
        end++;
    const char *name = jj_intern(l->t, l->source + l->pos, end - l->pos);
    if (!name)
        return no_memory(l);
    *token = (jj_token){.kind = JJ_T_NAME, .line = l->line, .text = name, .size = end - l->pos};
    move(l, end);
    return TM_OK;
}

tm_status jj_lexer_next(jj_lexer *l, jj_token *token)
{
    return l->state == IN_TEXT ? next_in_text(l, token) : next_in_tag(l, token);
}
