// The common includes of kernel files: the kernel interface, token tiles, norms and pages.
// Knows nothing about any particular op.
#pragma once

#include "kernel.h"
#include "norm.h"
#include "pages.h"
#include "tile.h"
