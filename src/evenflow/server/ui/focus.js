/**
 * What the person is looking at: nothing, one tenant, or one request. All views follow it.
 */

/** Emits "change". */
export class Focus extends EventTarget {
  /** @type {string|null} */
  tenant = null;
  /** @type {string|null} */
  request = null;

  get isEmpty() {
    return this.tenant === null && this.request === null;
  }

  /** Look at a tenant, or no longer, if it was looked at already. */
  toggleTenant(tenant) {
    this.#set(this.tenant === tenant ? null : tenant, null);
  }

  /** Look at a request. */
  selectRequest(request) {
    this.#set(null, request);
  }

  clear() {
    this.#set(null, null);
  }

  /** Whether something that belongs to a tenant and a request should stand out. */
  includes(tenant, request) {
    if (this.request !== null) return request === this.request;
    return this.tenant === null || tenant === this.tenant;
  }

  #set(tenant, request) {
    this.tenant = tenant;
    this.request = request;
    this.dispatchEvent(new Event("change"));
  }
}
