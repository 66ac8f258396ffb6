/* Guesser: words to what the domains that a text may be of add to the logits, as score/domain.py has it. */

enum { EVIDENCE, PRIOR, EFFECTS };

static PyObject *guesser_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(names))
{
    PyObject *evidence, *prior, *effects;
    Holder *guesser = new_holder(type);
    if (!guesser) return NULL;
    if (!PyArg_ParseTuple(args, "OOOi:Guesser", &evidence, &prior, &effects, &guesser->shift) ||
        hold(guesser, evidence, "f", 2, "evidence") < 0 || hold(guesser, prior, "d", 1, "prior") < 0 ||
        hold(guesser, effects, "d", 2, "effects") < 0)
        return refuse(guesser, "");
    const Py_ssize_t n_coarse = LENGTH(guesser, EVIDENCE, 0), n = LENGTH(guesser, PRIOR, 0);
    if (LENGTH(guesser, EVIDENCE, 1) != n || LENGTH(guesser, EFFECTS, 0) != n || !n || guesser->shift < 0 ||
        guesser->shift > 63)
        return refuse(guesser, "evidence, prior, effects and shift: do not fit");
    /* Shares, effects, and for the coarse buckets: the places of those that occur, and a byte for each. */
    const size_t n_doubles = (size_t)(n + LENGTH(guesser, EFFECTS, 1)), n_places = (size_t)n_coarse;
    guesser->scratch = PyMem_Malloc(n_doubles * sizeof(double) + n_places * (sizeof(uint32_t) + 1) + 1);
    if (guesser->scratch) return (PyObject *)guesser;
    PyErr_NoMemory();
    return refuse(guesser, "");
}

/* List the coarse buckets that occur; return how many, or -1 for what is out of range. */
static Py_ssize_t list_coarse(const Holder *guesser, const Py_buffer *buckets, uint32_t *listed, uint8_t *is_listed)
{
    const size_t n_coarse = (size_t)LENGTH(guesser, EVIDENCE, 0), n_domains = (size_t)LENGTH(guesser, EVIDENCE, 1);
    const float *evidence = guesser->views[EVIDENCE].buf;
    Py_ssize_t n = 0;
    memset(is_listed, 0, n_coarse);
    for (Py_ssize_t i = 0; i < buckets->shape[0]; i++) {
        const size_t coarse = item(buckets, i) >> guesser->shift;
        if (coarse >= n_coarse) return -1;
        if (is_listed[coarse]) continue;
        is_listed[coarse] = 1;
        listed[n++] = (uint32_t)coarse;
        fetch(evidence + coarse * n_domains, n_domains); /* in a process that does much else the rows have left the cache */
    }
    return n;
}

/* Sum the listed rows of evidence into sums. Exact, and so the same in any order: see score/domain.py. */
static void add_evidence(const Holder *guesser, const uint32_t *listed, Py_ssize_t n_listed, double *sums)
{
    enum { BLOCK = 8 };
    const float *evidence = guesser->views[EVIDENCE].buf;
    const Py_ssize_t n = LENGTH(guesser, EVIDENCE, 1);
    for (Py_ssize_t start = 0; start < n; start += BLOCK) {
        const Py_ssize_t width = n - start < BLOCK ? n - start : BLOCK;
        double block[BLOCK] = {0};
        if (width == BLOCK) {
            for (Py_ssize_t i = 0; i < n_listed; i++)
                for (int j = 0; j < BLOCK; j++) block[j] += (double)evidence[listed[i] * n + start + j];
        } else {
            for (Py_ssize_t i = 0; i < n_listed; i++)
                for (Py_ssize_t j = 0; j < width; j++) block[j] += (double)evidence[listed[i] * n + start + j];
        }
        memcpy(sums + start, block, (size_t)width * sizeof *sums);
    }
}

/* Turn log evidence into shares that sum to 1. */
static void to_shares(const double *prior, Py_ssize_t n, double *shares)
{
    double top = -INFINITY, total = 0.0;
    for (Py_ssize_t i = 0; i < n; i++) shares[i] += prior[i];
    for (Py_ssize_t i = 0; i < n; i++) top = shares[i] > top ? shares[i] : top;
    for (Py_ssize_t i = 0; i < n; i++) total += shares[i] = exp(shares[i] - top);
    for (Py_ssize_t i = 0; i < n; i++) shares[i] /= total;
}

static PyObject *guesser_effects(PyObject *self, PyObject *from)
{
    Holder *guesser = (Holder *)self;
    const Py_ssize_t n = LENGTH(guesser, PRIOR, 0), n_tiers = LENGTH(guesser, EFFECTS, 1);
    double *shares = guesser->scratch, *effects = shares + n;
    uint32_t *listed = (uint32_t *)(effects + n_tiers);
    Py_buffer buckets;
    if (take(from, &buckets, "lqH", 1, "buckets") < 0) return NULL;
    const Py_ssize_t n_listed = list_coarse(guesser, &buckets, listed, (uint8_t *)(listed + LENGTH(guesser, EVIDENCE, 0)));
    PyBuffer_Release(&buckets);
    if (n_listed < 0) return PyErr_Format(PyExc_ValueError, "buckets: out of range");
    add_evidence(guesser, listed, n_listed, shares);
    to_shares(DOUBLES(guesser, PRIOR), n, shares);
    multiply(shares, DOUBLES(guesser, EFFECTS), n, n_tiers, effects);
    return as_floats(effects, n_tiers, 0);
}
