# SPDX-License-Identifier: Apache-2.0
"""What the bundles share: the same files in each bundle's package, so that each bundle stands alone."""
