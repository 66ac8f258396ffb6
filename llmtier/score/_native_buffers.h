/* What the three kinds of object share: buffers that they hold, numbers that they return, one product of matrices. */
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#if FLT_EVAL_METHOD != 0 || SIZE_MAX != UINT64_MAX
#error "written for 64 bits and for doubles computed as such; numpy serves elsewhere"
#endif


/* Take a C-contiguous, aligned buffer of n_dims dimensions whose items are of one of the formats. */
static int take(PyObject *from, Py_buffer *view, const char *formats, int n_dims, const char *name)
{
    if (PyObject_GetBuffer(from, view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) < 0) return -1;
    const char *format = view->format ? view->format : "B";
    const Py_ssize_t n_bytes = format[0] == 'H' ? 2 : format[0] == 'f' ? 4 : 8;
    if (strlen(format) != 1 || !strchr(formats, format[0]) || view->itemsize != n_bytes) {
        PyErr_Format(PyExc_TypeError, "%s: items of format '%s', wanted one of '%s'", name, format, formats);
    } else if (view->ndim != n_dims) {
        PyErr_Format(PyExc_ValueError, "%s: %d dimensions, wanted %d", name, view->ndim, n_dims);
    } else if (view->len && (uintptr_t)view->buf % (uintptr_t)n_bytes) {
        PyErr_Format(PyExc_ValueError, "%s: not aligned", name);
    } else {
        return 0;
    }
    PyBuffer_Release(view);
    return -1;
}

/* An object that holds buffers and scratch memory; the three kinds of it differ in what they hold. */
typedef struct {
    PyObject_HEAD
    int n_views;
    Py_buffer views[6];
    double most; /* deviations that a count may have (Head) */
    int shift;   /* from a bucket to a coarse one (Guesser) */
    double *scratch;
} Holder;

static void holder_dealloc(PyObject *self)
{
    Holder *holder = (Holder *)self;
    PyTypeObject *type = Py_TYPE(self);
    while (holder->n_views) PyBuffer_Release(&holder->views[--holder->n_views]);
    PyMem_Free(holder->scratch);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

static int hold(Holder *holder, PyObject *from, const char *formats, int n_dims, const char *name)
{
    if (take(from, &holder->views[holder->n_views], formats, n_dims, name) < 0) return -1;
    holder->n_views++;
    return 0;
}

static Holder *new_holder(PyTypeObject *type)
{
    return (Holder *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0); /* zeroed */
}

static PyObject *refuse(Holder *holder, const char *message)
{
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, message);
    Py_DECREF(holder);
    return NULL;
}

#define DOUBLES(holder, index) ((const double *)(holder)->views[index].buf)
#define LENGTH(holder, index, dimension) ((holder)->views[index].shape[dimension])

static PyObject *as_floats(const double *values, Py_ssize_t n, int is_tuple)
{
    PyObject *found = is_tuple ? PyTuple_New(n) : PyList_New(n);
    for (Py_ssize_t i = 0; found && i < n; i++) {
        PyObject *value = PyFloat_FromDouble(values[i]);
        if (!value || (is_tuple ? PyTuple_SetItem(found, i, value) : PyList_SetItem(found, i, value)) < 0)
            Py_CLEAR(found);
    }
    return found;
}

/* Take the buckets and counts of a text's features. */
static int take_words(PyObject *const *from, Py_buffer *buckets, Py_buffer *counts)
{
    if (take(from[0], buckets, "lqH", 1, "buckets") < 0) return -1;
    if (take(from[1], counts, "lqH", 1, "counts") == 0) {
        if (counts->itemsize == buckets->itemsize && counts->shape[0] == buckets->shape[0]) return 0;
        PyErr_SetString(PyExc_ValueError, "buckets and counts: differ in length or kind");
        PyBuffer_Release(counts);
    }
    PyBuffer_Release(buckets);
    return -1;
}

/* Return an item of what take_words took; what is negative becomes far too large. */
static inline size_t item(const Py_buffer *view, Py_ssize_t i)
{
    return view->itemsize == 2 ? ((const uint16_t *)view->buf)[i] : ((const size_t *)view->buf)[i];
}

/* Ask for memory that will be read soon. */
static inline void fetch(const float *from, size_t n)
{
#ifdef __GNUC__
    for (size_t i = 0; i < n; i += 16) __builtin_prefetch(from + i);
    __builtin_prefetch(from + n - 1);
#endif
}

/* Multiply a row by a matrix of shape (n, n_columns), adding one row of it after another. */
static void multiply(const double *row, const double *matrix, Py_ssize_t n, Py_ssize_t n_columns, double *products)
{
    memset(products, 0, (size_t)n_columns * sizeof *products);
    for (Py_ssize_t i = 0; i < n; i++)
        for (Py_ssize_t j = 0; j < n_columns; j++) products[j] += row[i] * matrix[i * n_columns + j];
}
