# Copied from bundles/common by `make vendor`; edit it there.
# SPDX-License-Identifier: Apache-2.0
"""What the bundles share: the same files in each bundle's package, so that each bundle stands alone."""
