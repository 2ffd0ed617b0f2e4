//! An emitter of the few PowerPC instructions that [`super::guest`] needs: 64-bit, big endian, position fixed.

/// A general register.
pub type Reg = u32;

/// SPRG0: kept over interrupts and migration, and no one else's.
pub const SPRG0: u32 = 272;
/// The decrementer.
pub const DEC: u32 = 22;
const CTR: u32 = 9;
const LR: u32 = 8;

/// Instructions in the order of their addresses, the first at `base`.
pub struct Code {
    base: u32,
    words: Vec<u32>,
}

/// A place to which a branch goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label(pub u32);

/// When a conditional branch is taken: its BO and BI fields.
#[derive(Debug, Clone, Copy)]
pub enum When {
    /// The last comparison found its operands equal.
    Equal,
    /// It did not.
    NotEqual,
    /// The count register, one less, is not zero.
    CountLeft,
}

impl Code {
    pub fn at(base: u32) -> Self {
        Self {
            base,
            words: Vec::new(),
        }
    }

    /// Where the next instruction will be.
    pub fn here(&self) -> Label {
        Label(self.base + 4 * self.words.len() as u32)
    }

    /// The code as it lies in memory.
    pub fn bytes(&self) -> Vec<u8> {
        self.words.iter().flat_map(|w| w.to_be_bytes()).collect()
    }

    fn word(&mut self, word: u32) {
        self.words.push(word);
    }

    fn d_form(&mut self, opcode: u32, rt: Reg, ra: Reg, immediate: u16) {
        self.word(opcode << 26 | rt << 21 | ra << 16 | u32::from(immediate));
    }

    fn x_form(&mut self, rt: Reg, ra: Reg, rb: Reg, extended: u32) {
        self.word(31 << 26 | rt << 21 | ra << 16 | rb << 11 | extended << 1);
    }

    /// `rt` = `value`; at most five instructions.
    pub fn load_immediate(&mut self, rt: Reg, value: u64) {
        let part = |n: u32| (value >> (16 * n)) as u16;
        if value < 0x8000 {
            return self.d_form(14, rt, 0, part(0)); // addi
        }
        if value >> 31 == 0 {
            self.d_form(15, rt, 0, part(1)); // addis
        } else {
            self.d_form(15, rt, 0, part(3));
            self.d_form(24, rt, rt, part(2)); // ori
            // rldicr rt,rt,32,31: the low half becomes the high one, with zeros behind.
            self.word(30 << 26 | rt << 21 | rt << 16 | 62 << 5 | 1 << 2 | 1 << 1);
            self.d_form(25, rt, rt, part(1)); // oris
        }
        self.d_form(24, rt, rt, part(0));
    }

    /// Zero-extending load of 1, 2, 4 or 8 bytes at `offset` from `ra`.
    pub fn load(&mut self, size: u8, rt: Reg, offset: u16, ra: Reg) {
        let opcode = match size {
            1 => 34,
            2 => 40,
            4 => 32,
            _ => 58,
        };
        self.d_form(opcode, rt, ra, offset);
    }

    /// Store of 1, 2, 4 or 8 bytes.
    pub fn store(&mut self, size: u8, rs: Reg, offset: u16, ra: Reg) {
        let opcode = match size {
            1 => 38,
            2 => 44,
            4 => 36,
            _ => 62,
        };
        self.d_form(opcode, rs, ra, offset);
    }

    /// `ra` = `rs`.
    pub fn copy(&mut self, ra: Reg, rs: Reg) {
        self.x_form(rs, ra, rs, 444); // or
    }

    /// `ra` = `rs` | `rb`.
    pub fn or(&mut self, ra: Reg, rs: Reg, rb: Reg) {
        self.x_form(rs, ra, rb, 444);
    }

    /// Leaves the processor to another thread: a hint.
    pub fn pause(&mut self) {
        self.copy(31, 31);
    }

    /// Compares `ra` with a constant, 64 bits wide.
    pub fn compare(&mut self, ra: Reg, with: u16) {
        self.d_form(11, 1, ra, with); // cmpdi
    }

    pub fn branch(&mut self, to: Label) {
        let distance = to.0.wrapping_sub(self.here().0);
        self.word(18 << 26 | distance & 0x03ff_fffc);
    }

    /// A branch that leaves the address behind it in LR.
    pub fn call(&mut self, to: Label) {
        let distance = to.0.wrapping_sub(self.here().0);
        self.word(18 << 26 | distance & 0x03ff_fffc | 1);
    }

    pub fn branch_if(&mut self, when: When, to: Label) {
        let distance = to.0.wrapping_sub(self.here().0);
        let (bo, bi) = match when {
            When::Equal => (12, 2),
            When::NotEqual => (4, 2),
            When::CountLeft => (16, 0),
        };
        self.word(16 << 26 | bo << 21 | bi << 16 | distance & 0xfffc);
    }

    /// Goes on at the address in the count register.
    pub fn branch_to_count(&mut self) {
        self.word(19 << 26 | 20 << 21 | 528 << 1);
    }

    fn spr(&mut self, rt: Reg, spr: u32, extended: u32) {
        self.word(31 << 26 | rt << 21 | (spr & 31) << 16 | (spr >> 5) << 11 | extended << 1);
    }

    pub fn move_to_spr(&mut self, spr: u32, rs: Reg) {
        self.spr(rs, spr, 467);
    }

    pub fn move_from_spr(&mut self, rt: Reg, spr: u32) {
        self.spr(rt, spr, 339);
    }

    pub fn move_to_count(&mut self, rs: Reg) {
        self.move_to_spr(CTR, rs);
    }

    pub fn move_from_link(&mut self, rt: Reg) {
        self.move_from_spr(rt, LR);
    }

    pub fn move_from_msr(&mut self, rt: Reg) {
        self.x_form(rt, 0, 0, 83);
    }

    pub fn move_to_msr(&mut self, rs: Reg) {
        self.x_form(rs, 0, 0, 178);
        self.word(0x4c00_012c); // isync
    }

    /// Everything before is seen before everything after.
    pub fn sync(&mut self) {
        self.word(0x7c00_04ac);
    }

    /// A call of the hypervisor: `sc 1`.
    pub fn hypercall(&mut self) {
        self.word(0x4400_0022);
    }
}
