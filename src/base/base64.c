/* Base64: see base64.h. Strict: no white space, padding where it belongs, no stray bits. */
#include "base/base64.h"

static int value_of(char c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

bool tm_base64_decode(const char *text, size_t size, tm_buf *out)
{
    if (size % 4)
        return false;
    for (size_t i = 0; i < size; i += 4) {
        size_t pad = i + 4 < size || text[i + 3] != '=' ? 0 : text[i + 2] != '=' ? 1 : 2;
        uint32_t bits = 0;
        for (size_t j = 0; j < 4; j++) {
            int value = j < 4 - pad ? value_of(text[i + j]) : 0;
            if (value < 0)
                return false;
            bits = bits << 6 | (uint32_t)value;
        }
        char bytes[3] = {(char)(bits >> 16), (char)(bits >> 8), (char)bits};
        if ((pad == 1 && bytes[2]) || (pad == 2 && (bytes[1] || bytes[2])))
            return false;
        tm_buf_add(out, bytes, 3 - pad);
    }
    return true;
}

void tm_base64_encode(const void *bytes, size_t size, tm_buf *out)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const uint8_t *p = bytes;
    for (size_t i = 0; i < size; i += 3) {
        size_t have = size - i < 3 ? size - i : 3;
        uint32_t bits = (uint32_t)p[i] << 16;
        if (have > 1)
            bits |= (uint32_t)p[i + 1] << 8;
        if (have > 2)
            bits |= p[i + 2];
        char text[4] = {digits[bits >> 18], digits[bits >> 12 & 63], '=', '='};
        if (have > 1)
            text[2] = digits[bits >> 6 & 63];
        if (have > 2)
            text[3] = digits[bits & 63];
        tm_buf_add(out, text, 4);
    }
}
