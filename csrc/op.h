// What a kernel file includes: tiles of tokens, norms, pages and the form of a kernel.
// Knows nothing about any particular op.
#pragma once

#include "kernel.h"
#include "norm.h"
#include "pages.h"
#include "tile.h"
