/* Reader: a text's words and numbers, as score/words.py and score/features.py have them. */

static const uint64_t BASE = 0x9E3779B97F4A7C15u, MIX = 0xFF51AFD7ED558CCDu, PAIR = 0xC2B2AE3D27D4EB4Fu;
enum { DIGITS, SIGNS, CAPITALS, CODE, LINES, QUESTIONS, N_MARKS };
static const char *const MARKED[N_MARKS] = {
    "0123456789", "+-*/=^<>%", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "{}[]();_`#=<>\\", "\n", "?"};
enum { MARK_BITS = 10, MARK_CHUNK = (1 << MARK_BITS) - 1 };

static uint64_t marks_of[128];     /* a 1 in the field of each mark that a character is */
static uint32_t writers[0x10000]; /* which occurrence wrote to a bucket last; never read where none did */

static PyObject *reader_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(names))
{
    PyObject *kinds, *values;
    if (!PyArg_ParseTuple(args, "OO:Reader", &kinds, &values)) return NULL;
    Holder *reader = new_holder(type);
    if (!reader) return NULL;
    if (hold(reader, kinds, "H", 1, "kinds") < 0 || hold(reader, values, "LQ", 1, "values") < 0 ||
        LENGTH(reader, 0, 0) != LENGTH(reader, 1, 0))
        return refuse(reader, "kinds and values: different lengths");
    return (PyObject *)reader;
}

static inline uint64_t mix(uint64_t hash)
{
    return (hash ^ hash >> 32) * MIX;
}

/* Return a text's characters in memory that the caller frees, and their number; NULL with an exception. */
static uint32_t *characters_of(PyObject *text, Py_ssize_t *n)
{
    *n = PyUnicode_GetLength(text);
    if (*n < 0) return NULL;
    uint32_t *found = PyMem_Malloc((size_t)(2 * *n + 2) * sizeof *found); /* twice: a character may be two UTF-16 codes */
    if (!found) return (uint32_t *)PyErr_NoMemory();
    if (PyUnicode_AsUCS4(text, found, 2 * *n + 2, 0)) return found;
    PyMem_Free(found);
    return NULL;
}

static int is_lowered_whole(const uint32_t *characters, Py_ssize_t n)
{
    int found = 0; /* without a branch, so that it is done many at a time */
    for (Py_ssize_t i = 0; i < n; i++)
        found |= (characters[i] > 0xFFFF) | (characters[i] == 0x130) | (characters[i] == 0x3A3);
    return found;
}

/* Turn characters into UTF-16 codes, in place; return how many. */
static Py_ssize_t to_utf16(uint32_t *characters, Py_ssize_t n)
{
    Py_ssize_t n_more = 0;
    for (Py_ssize_t i = 0; i < n; i++) n_more += characters[i] > 0xFFFF;
    for (Py_ssize_t i = n - 1, at = n + n_more - 1; n_more && i >= 0; i--) {
        uint32_t one = characters[i];
        if (one > 0xFFFF) {
            one -= 0x10000;
            characters[at--] = 0xDC00 | (one & 0x3FF);
            one = 0xD800 | one >> 10;
        }
        characters[at--] = one;
    }
    return n + n_more;
}

static void count_marks(const uint32_t *characters, Py_ssize_t n, Py_ssize_t counts[N_MARKS])
{
    memset(counts, 0, N_MARKS * sizeof *counts);
    for (Py_ssize_t start = 0; start < n; start += MARK_CHUNK) {
        Py_ssize_t end = n - start < MARK_CHUNK ? n : start + MARK_CHUNK;
        uint64_t sum = 0;
        for (Py_ssize_t i = start; i < end; i++) sum += characters[i] < 128 ? marks_of[characters[i]] : 0;
        for (int mark = 0; mark < N_MARKS; mark++) counts[mark] += (Py_ssize_t)(sum >> mark * MARK_BITS & MARK_CHUNK);
    }
}

/* Hash the words of n codes into words; return how many, or -1 for a code beyond the tables. */
static Py_ssize_t hash_words(const Holder *reader, const uint32_t *codes, Py_ssize_t n, uint64_t *words, Py_ssize_t *n_numbers)
{
    const uint16_t *kinds = reader->views[0].buf;
    const uint64_t *values = reader->views[1].buf;
    const uint64_t n_known = (uint64_t)LENGTH(reader, 0, 0);
    Py_ssize_t n_words = 0;
    uint64_t hash = 0, power = 1;
    unsigned last = 0;
    *n_numbers = 0;
    for (Py_ssize_t i = 0; i < n; i++) {
        if (codes[i] >= n_known) return -1;
        const unsigned kind = kinds[codes[i]];
        const int is_new = kind != last;
        words[n_words] = mix(hash); /* without a branch, which would be guessed wrong at most words */
        n_words += is_new & (last != 0);
        *n_numbers += is_new & (kind == 2);
        hash = is_new ? 0 : hash, power = is_new ? 1 : power, last = kind;
        hash += values[codes[i]] * power;
        power *= BASE;
    }
    if (last) words[n_words++] = mix(hash);
    return n_words;
}

/* Return (buckets, counts) of words and pairs, as bytes of Py_ssize_t, in a new tuple of three; and how many differ. */
static PyObject *count_buckets(const uint64_t *words, Py_ssize_t n_words, Py_ssize_t *n_different)
{
    Py_ssize_t n = n_words ? 2 * n_words - 1 : 0, different = 0;
    PyObject *first = PyBytes_FromStringAndSize(NULL, n * (Py_ssize_t)sizeof(Py_ssize_t));
    PyObject *second = PyBytes_FromStringAndSize(NULL, n * (Py_ssize_t)sizeof(Py_ssize_t));
    PyObject *found = first && second ? PyTuple_New(3) : NULL;
    if (!found) {
        Py_XDECREF(first);
        Py_XDECREF(second);
        return NULL;
    }
    Py_ssize_t *buckets = (Py_ssize_t *)PyBytes_AsString(first), *counts = (Py_ssize_t *)PyBytes_AsString(second);
    for (Py_ssize_t i = 0; i < n_words; i++) buckets[i] = (Py_ssize_t)(words[i] >> 48);
    for (Py_ssize_t i = n_words; i < n; i++)
        buckets[i] = (Py_ssize_t)(mix(words[i - n_words] * PAIR + words[i - n_words + 1]) >> 48);
    for (Py_ssize_t i = 0; i < n; i++) writers[buckets[i]] = (uint32_t)i;
    memset(counts, 0, (size_t)n * sizeof *counts);
    for (Py_ssize_t i = 0; i < n; i++) different += !counts[writers[buckets[i]]]++;
    *n_different = different;
    PyTuple_SetItem(found, 0, first);
    PyTuple_SetItem(found, 1, second);
    return found;
}

static PyObject *read_words(const Holder *reader, const uint32_t *codes, Py_ssize_t n, Py_ssize_t *n_words,
                            Py_ssize_t *n_numbers, Py_ssize_t *n_different)
{
    if (n > INT32_MAX) return PyErr_Format(PyExc_ValueError, "text of %zd codes: too long", n);
    uint64_t *words = PyMem_Malloc((size_t)(n + 1) * sizeof *words);
    if (!words) return PyErr_NoMemory();
    *n_words = hash_words(reader, codes, n, words, n_numbers);
    PyObject *found = *n_words < 0 ? PyErr_Format(PyExc_ValueError, "text: a character that the tables lack")
                                   : count_buckets(words, *n_words, n_different);
    PyMem_Free(words);
    return found;
}

static uint32_t *lower(PyObject *text, Py_ssize_t *n)
{
    PyObject *lowered = PyObject_CallMethod(text, "lower", NULL);
    uint32_t *characters = lowered ? characters_of(lowered, n) : NULL;
    Py_XDECREF(lowered);
    if (characters) *n = to_utf16(characters, *n);
    return characters;
}

static PyObject *reader_read(PyObject *self, PyObject *const *args, Py_ssize_t n_args)
{
    if (n_args != 2 || !PyUnicode_Check(args[0]))
        return PyErr_Format(PyExc_TypeError, "read(text: str, n_whole: int), got %zd arguments", n_args);
    Py_ssize_t n_whole = PyLong_AsSsize_t(args[1]), n, n_codes, marks[N_MARKS];
    Py_ssize_t n_words = 0, n_numbers = 0, n_different = 0;
    if (n_whole < 0) return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "n_whole: must be >= 0");
    uint32_t *codes = characters_of(args[0], &n);
    if (!codes) return NULL;
    count_marks(codes, n, marks);
    n_codes = n;
    if (is_lowered_whole(codes, n)) {
        PyMem_Free(codes);
        if (!(codes = lower(args[0], &n_codes))) return NULL;
    }
    PyObject *found = read_words((Holder *)self, codes, n_codes, &n_words, &n_numbers, &n_different);
    PyMem_Free(codes);
    if (!found) return NULL;
    double n_chars = n ? (double)n : 1.0;
    double numbers[] = {log1p((double)n_whole), log1p((double)n_words), log1p((double)marks[LINES]),
                        (double)marks[DIGITS] / n_chars, (double)marks[SIGNS] / n_chars,
                        (double)marks[CAPITALS] / n_chars,
                        n_words ? (double)n_different / (double)(2 * n_words - 1) : 0.0,
                        marks[QUESTIONS] ? 1.0 : 0.0, (double)marks[CODE] / n_chars,
                        n_chars / (n_words ? (double)n_words : 1.0), log1p((double)n_numbers)};
    PyObject *floats = as_floats(numbers, sizeof numbers / sizeof *numbers, 1);
    if (floats && PyTuple_SetItem(found, 2, floats) == 0) return found;
    Py_DECREF(found);
    return NULL;
}
