// See error.h.
#include <stdarg.h>
#include <stdio.h>
#include "error.h"

static int fail(struct error *error, int code, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error->text, sizeof error->text, format, arguments);
    va_end(arguments);
    error->code = code;
    return code;
}
