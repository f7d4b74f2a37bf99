/* Tells the best label, or else the numbers, of one raw example: numbers on standard input, spaces or commas between.

   cc -std=c99 example.c -o example -ltensorflowlite_c -lm
   ./example $model < example.csv

   It needs the headers and the library of the TensorFlow Lite C API. */

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "tensorflow/lite/c/c_api.h"

#define SIZE $size
#define TOKENS $tokens
static const float mean[] = {$mean};
static const float std[] = {$std};
#define CLASSES $classes /* 0: its answer is numbers */
static const char *const labels[] = {$labels};
#define COUNT(array) (sizeof(array) / sizeof(array)[0])

static void fail(const char *what) {
  fprintf(stderr, "%s\n", what);
  exit(1);
}

/* Reads the example; normalises it unless it is tokens. */
static void read_example(float *x) {
  for (size_t i = 0; i < SIZE; ++i) {
    if (scanf("%f%*[, \t\r\n]", &x[i]) != 1) fail("too few numbers");
    if (!TOKENS) x[i] = (x[i] - mean[i % COUNT(mean)]) / std[i % COUNT(std)];
  }
}

/* Writes one value where the tensor has its i-th, in the type that it takes. */
static void put(TfLiteTensor *tensor, size_t i, float value) {
  TfLiteQuantizationParams q = TfLiteTensorQuantizationParams(tensor);
  void *data = TfLiteTensorData(tensor);
  switch (TfLiteTensorType(tensor)) {
    case kTfLiteFloat32: ((float *)data)[i] = value; break;
    case kTfLiteInt32: ((int32_t *)data)[i] = (int32_t)value; break;
    case kTfLiteInt64: ((int64_t *)data)[i] = (int64_t)value; break;
    case kTfLiteInt8:
      value = nearbyintf(value / q.scale) + (float)q.zero_point;
      ((int8_t *)data)[i] = (int8_t)fminf(fmaxf(value, -128.0f), 127.0f);
      break;
    default: fail("the model takes input of another type");
  }
}

/* Returns how many values a tensor has. */
static size_t length(const TfLiteTensor *tensor) {
  size_t count = 1;
  for (int32_t axis = 0; axis < TfLiteTensorNumDims(tensor); ++axis)
    count *= (size_t)TfLiteTensorDim(tensor, axis);
  return count;
}

/* Returns the i-th output. */
static float get(const TfLiteTensor *tensor, size_t i) {
  TfLiteQuantizationParams q = TfLiteTensorQuantizationParams(tensor);
  const void *data = TfLiteTensorData(tensor);
  if (TfLiteTensorType(tensor) != kTfLiteInt8) return ((const float *)data)[i];
  return q.scale * (float)(((const int8_t *)data)[i] - q.zero_point);
}

int main(int argc, char **argv) {
  static float x[SIZE];
  if (argc != 2) fail("usage: example MODEL < NUMBERS");
  TfLiteModel *model = TfLiteModelCreateFromFile(argv[1]);
  if (!model) fail("the model cannot be read");
  TfLiteInterpreter *interpreter = TfLiteInterpreterCreate(model, NULL);
  if (!interpreter || TfLiteInterpreterAllocateTensors(interpreter) != kTfLiteOk)
    fail("the model cannot be run");

  TfLiteTensor *input = TfLiteInterpreterGetInputTensor(interpreter, 0);
  read_example(x);
  size_t step = length(input); /* a stream takes one time step at once */
  for (size_t start = 0; start + step <= SIZE; start += step) {
    for (size_t i = 0; i < step; ++i) put(input, i, x[start + i]);
    if (TfLiteInterpreterInvoke(interpreter) != kTfLiteOk) fail("it failed");
  }

  const TfLiteTensor *output = TfLiteInterpreterGetOutputTensor(interpreter, 0);
  size_t best = 0;
  for (size_t i = 0; i < length(output); ++i) {
    if (!CLASSES) printf("%g\n", get(output, i));
    if (i < COUNT(labels) && get(output, i) > get(output, best)) best = i;
  }
  if (CLASSES) printf("%s\n", labels[best]);

  TfLiteInterpreterDelete(interpreter);
  TfLiteModelDelete(model);
  return 0;
}
