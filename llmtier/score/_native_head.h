/* Head: features to a logit a tier, as score/head.py has it. */

#define MAX_NUMBERS 32

enum { TABLE, LOGS, MEANS, INVERSES, FIRST, SECOND };

static PyObject *head_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(names))
{
    static const char *const formats[] = {"f", "d", "d", "d", "d", "d"};
    static const char *const names[] = {"table", "log_counts", "means", "inverse_deviations", "first", "second"};
    static const int n_dims[] = {2, 1, 1, 1, 2, 2};
    PyObject *from[6];
    Holder *head = new_holder(type);
    if (!head) return NULL;
    if (!PyArg_ParseTuple(args, "OOOOOOd:Head", from, from + 1, from + 2, from + 3, from + 4, from + 5, &head->most))
        return refuse(head, "");
    for (int i = 0; i < 6; i++)
        if (hold(head, from[i], formats[i], n_dims[i], names[i]) < 0) return refuse(head, "");
    Py_ssize_t n = LENGTH(head, MEANS, 0), n_hidden = LENGTH(head, FIRST, 1), n_tiers = LENGTH(head, SECOND, 1);
    if (n < 1 || n > MAX_NUMBERS || LENGTH(head, INVERSES, 0) != n || LENGTH(head, FIRST, 0) != n + 2 ||
        LENGTH(head, SECOND, 0) != n_hidden || n_tiers > n_hidden || LENGTH(head, TABLE, 1) < n_tiers + 1 || n_tiers < 1)
        return refuse(head, "means, inverse_deviations, first, second and table: shapes do not fit");
    head->scratch = PyMem_Malloc((size_t)(n_hidden + n_tiers + LENGTH(head, TABLE, 1)) * sizeof(double));
    if (head->scratch) return (PyObject *)head;
    PyErr_NoMemory();
    return refuse(head, "");
}

/* Add the rows of the table, weighed by the logs of the counts, into sums; return -1 for what is out of range. */
static int add_rows(const Holder *head, const Py_buffer *buckets, const Py_buffer *counts, double *sums)
{
    const float *table = head->views[TABLE].buf;
    const Py_ssize_t width = LENGTH(head, TABLE, 1);
    const size_t n_rows = (size_t)LENGTH(head, TABLE, 0), n_logs = (size_t)LENGTH(head, LOGS, 0);
    memset(sums, 0, (size_t)width * sizeof *sums);
    for (Py_ssize_t i = 0; i < buckets->shape[0]; i++) {
        const size_t bucket = item(buckets, i);
        if (bucket < n_rows) fetch(table + (Py_ssize_t)bucket * width, 1);
    }
    for (Py_ssize_t i = 0; i < buckets->shape[0]; i++) {
        const size_t bucket = item(buckets, i), count = item(counts, i);
        if (bucket >= n_rows || count >= n_logs) return -1;
        if (!count) continue;
        const float *row = table + (Py_ssize_t)bucket * width;
        const double log = DOUBLES(head, LOGS)[count];
        sums[0] += (double)row[0] * log * log;
        for (Py_ssize_t j = 1; j < width; j++) sums[j] += (double)row[j] * log;
    }
    return 0;
}

static int standardise(const Holder *head, PyObject *numeric, double row[MAX_NUMBERS + 2])
{
    const double *means = DOUBLES(head, MEANS), *inverses = DOUBLES(head, INVERSES);
    const Py_ssize_t n = LENGTH(head, MEANS, 0);
    if (!PyTuple_Check(numeric) || PyTuple_Size(numeric) != n) {
        PyErr_Format(PyExc_TypeError, "numeric: wanted a tuple of %zd floats", n);
        return -1;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        double number = PyFloat_AsDouble(PyTuple_GetItem(numeric, i));
        if (number == -1.0 && PyErr_Occurred()) return -1;
        row[i] = (number - means[i]) * inverses[i];
    }
    row[n] = row[0];
    row[n + 1] = 1.0;
    for (Py_ssize_t i = 0; i < n; i++)
        if (!(row[i] >= -head->most && row[i] <= head->most)) row[i] = copysign(head->most, row[i]);
    return 0;
}

static PyObject *head_outputs(PyObject *self, PyObject *const *args, Py_ssize_t n_args)
{
    Holder *head = (Holder *)self;
    const Py_ssize_t n_hidden = LENGTH(head, FIRST, 1), n_tiers = LENGTH(head, SECOND, 1);
    double row[MAX_NUMBERS + 2] = {0}, *hidden = head->scratch, *outputs = hidden + n_hidden, *sums = outputs + n_tiers;
    Py_buffer buckets, counts;
    if (n_args != 3) return PyErr_Format(PyExc_TypeError, "outputs(buckets, counts, numeric), got %zd arguments", n_args);
    if (standardise(head, args[2], row) < 0 || take_words(args, &buckets, &counts) < 0) return NULL;
    const int is_out = add_rows(head, &buckets, &counts, sums) < 0;
    PyBuffer_Release(&buckets);
    PyBuffer_Release(&counts);
    if (is_out) return PyErr_Format(PyExc_ValueError, "buckets or counts: out of range");
    multiply(row, DOUBLES(head, FIRST), LENGTH(head, FIRST, 0), n_hidden, hidden);
    for (Py_ssize_t i = 0; i < n_hidden - n_tiers; i++) hidden[i] = cos(hidden[i]);
    multiply(hidden, DOUBLES(head, SECOND), n_hidden, n_tiers, outputs);
    if (sums[0] > 0) {
        const double norm = sqrt(sums[0]);
        for (Py_ssize_t i = 0; i < n_tiers; i++) outputs[i] += sums[i + 1] / norm;
    }
    return as_floats(outputs, n_tiers, 0);
}
