/* The learned scorer's work on one request, in C: words and counts of a text, logits of a head, effects of a guess.

   Computes bit for bit what score/features.py, score/words.py, score/head.py and score/domain.py compute in numpy; they
   say what and why, and tests hold the two together. Integers wrap modulo 2^64. Sums of doubles run in the order of the
   text, and the compiler may neither reorder nor fuse them: no -ffast-math, and -ffp-contract=off.

   Only Python's stable API of 3.11: one file serves every later version. The GIL is held: a call takes microseconds, and
   the scratch memory is shared. */
#include "_native_buffers.h"
#include "_native_guesser.h"
#include "_native_head.h"
#include "_native_reader.h"

#define REVISION 1 /* of the calls; score/native.py names the one it speaks */

#define KIND(name, new, methods)                                                                                       \
    static PyType_Slot name##_slots[] = {                                                                              \
        {Py_tp_new, new}, {Py_tp_dealloc, holder_dealloc}, {Py_tp_methods, methods}, {0, NULL}};                       \
    static PyType_Spec name##_spec = {"llmtier.score._native." #name, sizeof(Holder), 0, Py_TPFLAGS_DEFAULT, name##_slots}

static PyMethodDef reader_methods[] = {{"read", (PyCFunction)(void (*)(void))reader_read, METH_FASTCALL, NULL}, {0}};
static PyMethodDef head_methods[] = {{"outputs", (PyCFunction)(void (*)(void))head_outputs, METH_FASTCALL, NULL}, {0}};
static PyMethodDef guesser_methods[] = {{"effects", guesser_effects, METH_O, NULL}, {0}};
KIND(Reader, reader_new, reader_methods);
KIND(Head, head_new, head_methods);
KIND(Guesser, guesser_new, guesser_methods);

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_native", NULL, -1, NULL, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void)
{
    PyType_Spec *specs[] = {&Reader_spec, &Head_spec, &Guesser_spec};
    PyObject *module = PyModule_Create(&definition);
    for (int i = 0; module && i < 3; i++) {
        PyObject *type = PyType_FromSpec(specs[i]);
        if (!type || PyModule_AddType(module, (PyTypeObject *)type) < 0) Py_CLEAR(module);
        Py_XDECREF(type);
    }
    for (int mark = 0; mark < N_MARKS; mark++)
        for (const char *one = MARKED[mark]; *one; one++) marks_of[(int)*one] |= (uint64_t)1 << mark * MARK_BITS;
    if (module && PyModule_AddIntConstant(module, "REVISION", REVISION) < 0) Py_CLEAR(module);
    return module;
}
