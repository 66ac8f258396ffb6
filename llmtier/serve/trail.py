"""Where one request has been: the tiers and engines that were asked or passed over, and what second tries it had."""


class Trail:
    """The way of one request.

    Attributes:
        tiers: Asked or passed over; the last is the present one.
        sites: Asked of the present tier.
        tier: The present one; likewise ``site``.
        has_moved: Whether a failure has brought it to another tier.
        has_switched: Whether a failure has brought it to another site of one tier.
    """

    __slots__ = ("has_moved", "has_switched", "site", "sites", "tier", "tiers")

    def __init__(self) -> None:
        self.tiers: list[str] = []
        self.sites: list[str] = []
        self.tier = self.site = ""
        self.has_moved = self.has_switched = False

    def enter(self, tier: str, site: str) -> None:
        """Go to a tier, and there to a site."""
        self.tiers.append(tier)
        self.sites.clear()
        self.tier = tier
        self.switch(site)

    def switch(self, site: str) -> None:
        """Go to a site of the present tier."""
        self.sites.append(site)
        self.site = site
